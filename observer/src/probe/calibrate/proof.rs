//! Packets that known rules and programs drop, in a network namespace made for them: what the eBPF side says of them proves
//! whether it can tell what dropped a packet. This half runs in the helper.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::unix::fs::MetadataExt,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use observer_ebpf::abi::{RuleConfig, VerdictNumbers};
use serde::{Deserialize, Serialize};

use crate::kernel::{btf::Btf, loopback::raise_loopback, netns_cookie};
use crate::{
    firewall::{
        build::{self, RuleSpec, TableSpec, Then},
        nft,
    },
    sys::drop_by_netfilter_program,
};

/// nftables' module, where it is not built in, and a type of its.
///
/// Where that is not described (modules' types are since Linux 5.11), it is as Linux 5.10 declares it
/// (`include/net/netfilter/nf_tables.h`), or the proof fails.
const MODULE: (&str, &str) = ("nf_tables", "nft_chain");
/// Bytes of an address.
const POINTER: u32 = 8;
/// The module that rejects in the family `inet`, and a function of its.
const REJECTER: (&str, &str) = ("nft_reject_inet", "nft_reject_inet_eval");

/// The module of iptables-legacy's tables.
const XTABLES: &str = "x_tables";

/// A port that no packet is sent to: what lies behind the last rule that matches must not be taken for it.
const NOBODY: u16 = 99;
/// Port that no rule of the main chain is about: its policy drops.
const POLICY: u16 = 6;
/// Port of a rule that rejects.
const REJECTED: u16 = 3;

/// Ports whose packets BPF netfilter programs drop, and the priority of each: before, between and behind the tables, so that
/// each has another place in the hook's list.
const BY_PROGRAM: [(u16, i32); 4] = [(13, -20), (14, -5), (15, 5), (16, 20)];

const fn spec(chain: &'static str, port: u16, then: Then) -> RuleSpec {
    RuleSpec { chain, port, then }
}

/// Every way to a drop that leaves the walker's frame in another state.
const RULES: [RuleSpec; 17] = [
    spec("output", 1, Then::Drop),
    spec("output", 2, Then::CountAndDrop),
    spec("output", REJECTED, Then::Reject),
    spec("output", 4, Then::Jump("inner")),
    spec("output", 5, Then::Jump("middle")),
    spec("output", 7, Then::Jump("empty")),
    spec("output", 8, Then::Goto("inner")),
    spec("output", 11, Then::Accept),
    spec("output", 12, Then::Accept),
    spec("output", 15, Then::Accept),
    spec("output", 16, Then::Accept),
    spec("output", NOBODY, Then::Drop),
    spec("inner", 4, Then::Drop),
    spec("inner", 8, Then::CountAndDrop),
    spec("inner", 5, Then::Drop),
    spec("middle", 5, Then::Jump("inner")),
    spec("empty", NOBODY, Then::Drop),
];
/// Ports whose packets are dropped in the end by the main chain's policy.
const BY_POLICY: [u16; 2] = [POLICY, 7];

/// Three tables, one behind the other: a chain that was walked before must not be taken for the one that drops.
const TABLES: [TableSpec<'static>; 3] = [
    TableSpec {
        name: "observer_before",
        priority: -10,
        drops: false,
        chains: &[],
        rules: &[spec("output", 9, Then::Drop), spec("output", 10, Then::CountAndDrop)],
    },
    TableSpec { name: MAIN, priority: 0, drops: true, chains: &["inner", "middle", "empty"], rules: &RULES },
    TableSpec {
        name: "observer_after",
        priority: 10,
        drops: false,
        chains: &[],
        rules: &[
            spec("output", NOBODY, Then::Drop),
            spec("output", 11, Then::Drop),
            spec("output", 12, Then::CountAndDrop),
        ],
    },
];
/// The table in the middle.
const MAIN: &str = "observer_proof";

/// What a packet's fate must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// Its destination port.
    pub port: u16,
    /// Cookie of the namespace; 0 where the kernel has none.
    pub cookie: u64,
    /// What drops it.
    pub by: By,
    /// Place of that in the hook's list of functions, from 0 on, and how many are in it.
    pub entry: (u32, u32),
}

/// What drops a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum By {
    /// nftables.
    Rule {
        /// Handle of the table.
        table: u64,
        /// Handle of the base chain.
        chain: u64,
        /// Handle of the rule; 0 for the chain's policy.
        rule: u64,
    },
    /// A BPF netfilter program.
    Program,
}

/// A proof that can begin: where, and what this kernel's numbers are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// Inode number of its namespace.
    pub netns: u32,
    /// Offsets of `nft_chain.table`, `nft_chain.handle` and `nft_table.handle`; `None` where the kernel does not describe them.
    offsets: Option<(u32, u32, u32)>,
    /// Lowest bit and width of `nft_rule_dp.handle`, where this kernel's rules are such.
    handle: Option<(u32, u32)>,
    /// What is known of hooks' lists.
    hooks: Hooks,
    /// What is known of how verdicts are given: offsets and words, in the order of the eBPF side's fields.
    verdict: Option<[u32; 6]>,
    /// What must come out.
    pub expected: Vec<Expected>,
}

impl Prepared {
    /// Chains can be read.
    pub fn knows_chains(&self) -> bool {
        self.offsets.is_some()
    }

    /// What the eBPF side is to know, with nothing learnt.
    pub fn config(&self) -> RuleConfig {
        let (chain_table, chain_handle, table_handle) = self.offsets.unwrap_or_default();
        let [packet_skb, registers, stack_pointer, rule_head, handle_bit, handle_mask] =
            self.verdict.unwrap_or_default().map(u64::from);
        RuleConfig {
            verdict: VerdictNumbers {
                packet_skb,
                registers,
                stack_pointer,
                rule_head,
                handle_bit,
                // As it is handed over: how many bits.
                handle_mask: (1 << handle_mask) - 1,
            },
            chain_table: chain_table.into(),
            chain_handle: chain_handle.into(),
            table_handle: table_handle.into(),
            rule_handle_bit: self.handle.map_or(0, |(bit, _)| bit.into()),
            rule_handle_mask: self.handle.map_or(0, |(_, width)| (1 << width) - 1),
            entries_hooks: self.hooks.entries_hooks.into(),
            entry_bytes: self.hooks.entry_bytes.into(),
            entry_private: self.hooks.entry_private.into(),
            program_aux: self.hooks.program_aux.into(),
            aux_id: self.hooks.aux_id.into(),
            ..RuleConfig::default()
        }
    }
}

/// Offsets of hooks' lists and of what functions on hooks have to themselves; 0 for what this kernel does not have.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Hooks {
    entries_hooks: u32,
    entry_bytes: u32,
    entry_private: u32,
    program_aux: u32,
    aux_id: u32,
}

/// Why there can be no proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Unproven {
    /// nftables is not loaded, and nobody is to load it for this.
    #[error("nftables is not loaded")]
    NotLoaded,
    /// It does not succeed now.
    #[error("{0}")]
    Later(String),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

/// A proof under way: its namespace belongs to a thread, and is gone with it.
pub struct Prover {
    send: Sender<()>,
    sent: Receiver<Result<()>>,
}

impl Prover {
    /// Makes the namespace and its rules.
    pub fn prepare() -> Result<(Self, Prepared), Unproven> {
        let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
        let is_loaded = |name: &str| modules.lines().any(|line| line.split(' ').next() == Some(name));
        let btf = Btf::of_module(MODULE.0).map_err(|error| Unproven::Other(error.to_string()))?;
        // Its types are the module's, which is loaded, or the kernel's own. Before Linux 5.11 modules' types are not described.
        if !btf.has_struct(MODULE.1) && !is_loaded(MODULE.0) {
            return Err(Unproven::NotLoaded);
        }
        let rejects = is_loaded(REJECTER.0) || btf.has_function(REJECTER.1);
        let other = |error: anyhow::Error| Unproven::Other(format!("{error:#}"));
        let offsets = numbers(&btf).inspect_err(|error| log::debug!("{error:#}")).ok();
        let handle = handle(&btf).inspect_err(|error| log::debug!("{error:#}")).ok();
        let hooks = hooks(&btf).map_err(other)?;
        let verdict = verdict(&btf).inspect_err(|error| log::debug!("{error:#}")).ok();
        let prepare = || {
            let (send, orders) = channel();
            let (reports, sent) = channel();
            let (ready, made) = channel();
            thread::spawn(move || {
                crate::sys::name_copy_thread();
                // A rejecting rule would load a module.
                let made = make(rejects);
                let all: Vec<Expected> = made.iter().flat_map(|(_, expected)| expected.clone()).collect();
                if ready.send(made).is_err() {
                    return;
                }
                while orders.recv().is_ok() {
                    if reports.send(send_all(&all)).is_err() {
                        return;
                    }
                }
            });
            let (netns, expected) = made.recv().context("the proof's thread failed")??;
            Ok((Self { send, sent }, Prepared { netns, offsets, handle, hooks, verdict, expected }))
        };
        prepare().map_err(|error: anyhow::Error| Unproven::Later(format!("{error:#}")))
    }

    /// Sends one packet to every port.
    pub fn send(&self) -> Result<()> {
        self.send.send(()).context("the proof's thread has ended")?;
        self.sent.recv().context("the proof's thread has ended")?
    }
}

/// Byte offset of a member.
fn offset(btf: &Btf, name: &str, path: &str) -> Result<u32> {
    let member = btf.member(name, path).with_context(|| format!("this kernel does not describe {name}.{path}"))?;
    ensure!(member.bit_offset.is_multiple_of(8), "{name}.{path} does not begin at a byte");
    Ok(member.bit_offset / 8)
}

/// Offsets, as [`Prepared`] has them.
fn numbers(btf: &Btf) -> Result<(u32, u32, u32)> {
    if !btf.has_struct(MODULE.1) {
        let bytes =
            |name: &str| btf.struct_bytes(name).with_context(|| format!("this kernel does not describe {name}"));
        let (list, hashed, table) = (bytes("list_head")?, bytes("rhlist_head")?, bytes("rhltable")?);
        // Behind two pointers, two lists and a place in a hash; behind a list, a hash, four lists and a counter.
        let chain_table = 2 * POINTER + 2 * list + hashed;
        return Ok((chain_table, chain_table + POINTER, list + table + 4 * list + POINTER));
    }
    Ok((offset(btf, "nft_chain", "table")?, offset(btf, "nft_chain", "handle")?, offset(btf, "nft_table", "handle")?))
}

/// The handle's bits, as [`Prepared`] has them.
fn handle(btf: &Btf) -> Result<(u32, u32)> {
    let handle = btf.member("nft_rule_dp", "handle").context("this kernel's rules have no `nft_rule_dp`")?;
    ensure!(handle.bit_offset + handle.bits <= 64 && handle.bits < 64, "a rule's handle is not in its first word");
    let last = btf.member("nft_rule_dp", "is_last").context("this kernel's rules have no mark for the last")?;
    ensure!(last.bit_offset == 0, "a rule's mark for the last is not its first bit");
    Ok((handle.bit_offset, handle.bits))
}

/// The word of a rule that has its handle: since 5.17 its first one, before that behind the list that it is in.
fn verdict(btf: &Btf) -> Result<[u32; 6]> {
    let registers = btf.struct_bytes("pt_regs").context("this kernel does not describe registers")?;
    let (registers, stack_pointer) = (registers / POINTER, offset(btf, "pt_regs", "sp")?);
    if !btf.has_struct(MODULE.1) {
        let list = btf.struct_bytes("list_head").context("this kernel does not describe lists")?;
        // The packet comes first; a rule's handle is the lowest bits behind the list that it is in.
        return Ok([0, registers, stack_pointer, list, 0, 42]);
    }
    let handle = btf.member("nft_rule_dp", "handle").or_else(|| btf.member("nft_rule", "handle"));
    let handle = handle.context("this kernel does not describe rules")?;
    let (head, bit) = (handle.bit_offset / 64 * 8, handle.bit_offset % 64);
    ensure!(bit + handle.bits <= 64 && handle.bits < 64, "a rule's handle is not in one word");
    Ok([offset(btf, "nft_pktinfo", "skb")?, registers, stack_pointer, head, bit, handle.bits])
}

/// Offset of `xt_table.name`.
pub fn xtable_name() -> Option<u32> {
    let btf = Btf::of_module(XTABLES).ok()?;
    offset(&btf, "xt_table", "name").ok()
}

fn hooks(btf: &Btf) -> Result<Hooks> {
    ensure!(offset(btf, "nf_hook_entry", "hook")? == 0, "a hook's function is not first");
    let known = |btf: &Btf, name: &str, path: &str| offset(btf, name, path).unwrap_or(0);
    Ok(Hooks {
        entries_hooks: offset(btf, "nf_hook_entries", "hooks")?,
        entry_bytes: btf.struct_bytes("nf_hook_entry").context("this kernel does not describe hooks")?,
        entry_private: offset(btf, "nf_hook_entry", "priv")?,
        program_aux: known(btf, "bpf_prog", "aux"),
        aux_id: known(btf, "bpf_prog_aux", "id"),
    })
}

/// In a namespace of this thread's own: the ruleset, and what it must do.
fn make(rejects: bool) -> Result<(u32, Vec<Expected>)> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    raise_loopback().context("cannot raise the namespace's loopback")?;
    let netns = fs::metadata("/proc/thread-self/ns/net").context("cannot read the namespace's number")?.ino();
    // Since Linux 5.14.
    let cookie = netns_cookie().unwrap_or(0);
    let mut expected = Vec::new();
    for (index, spec) in (0..).zip(TABLES) {
        let rules: Vec<RuleSpec> = spec.rules.iter().copied().filter(|rule| rejects || rule.port != REJECTED).collect();
        build::table(&TableSpec { rules: &rules, ..spec })?;
        let table =
            nft::tables()?.into_iter().find(|table| table.name == spec.name).context("a table is not listed")?;
        let base = nft::chains()?
            .into_iter()
            .find(|chain| chain.table == spec.name && chain.hook.is_some())
            .context("a chain is not listed")?;
        let expect = |port, rule| Expected {
            port,
            cookie,
            by: By::Rule { table: table.handle, chain: base.handle, rule },
            entry: (index, TABLES.len() as u32),
        };
        if spec.name == MAIN {
            expected.extend(BY_POLICY.map(|port| expect(port, 0)));
        }
        let listed: Vec<_> = nft::rules()?.into_iter().filter(|rule| rule.table == spec.name).collect();
        let mut position: HashMap<&str, usize> = HashMap::new();
        for rule in &rules {
            let index = position.entry(rule.chain).or_default();
            let found = listed.iter().filter(|listed| listed.chain == rule.chain).nth(*index);
            *index += 1;
            if rule.port != NOBODY && matches!(rule.then, Then::Drop | Then::CountAndDrop | Then::Reject) {
                expected.push(expect(rule.port, found.context("a rule is not listed")?.handle));
            }
        }
    }
    // A priority that is nobody else's, or it is refused.
    match drop_by_netfilter_program(BY_PROGRAM[0].1) {
        Ok(_) => expected.extend(BY_PROGRAM.map(|(port, priority)| {
            let before = TABLES.iter().filter(|table| table.priority < priority).count();
            Expected { port, cookie, by: By::Program, entry: (before as u32, TABLES.len() as u32 + 1) }
        })),
        Err(error) => log::debug!("no BPF netfilter program can be had: {error}"),
    }
    Ok((u32::try_from(netns).context("the namespace's number is too large")?, expected))
}

fn send_all(all: &[Expected]) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot make a socket")?;
    for Expected { port, .. } in all {
        let _program = BY_PROGRAM
            .iter()
            .find(|(of, _)| of == port)
            .map(|(_, priority)| drop_by_netfilter_program(*priority))
            .transpose()
            .context("cannot attach a BPF netfilter program")?;
        match socket.send_to(b"observer proof", (Ipv4Addr::LOCALHOST, *port)) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            Err(error) => return Err(error).context("a packet failed otherwise than by the drop"),
            Ok(_) => bail!("a packet to port {port} was not dropped"),
        }
    }
    Ok(())
}
