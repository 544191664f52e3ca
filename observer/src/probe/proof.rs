//! Packets that known rules drop, in a network namespace made for them: what the kernel half says of them proves whether it
//! can tell which rule dropped a packet. This half runs in the helper.

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
use observer_ebpf::abi::{RuleAnswer, RuleConfig};
use serde::{Deserialize, Serialize};

use super::{btf::Btf, selftest::raise_loopback};
use crate::{
    firewall::{
        build::{self, RuleSpec, TableSpec, Then},
        nft,
    },
    sys::netns_cookie,
};

/// nftables' module, where it is not built in, and a type of its.
const MODULE: (&str, &str) = ("nf_tables", "nft_chain");
/// The module that rejects in the family `inet`, and a function of its.
const REJECTER: (&str, &str) = ("nft_reject_inet", "nft_reject_inet_eval");

/// A port that no packet is sent to: what lies behind the last rule that matches must not be taken for it.
const NOBODY: u16 = 99;
/// Port that no rule of the main chain is about: its policy drops.
const POLICY: u16 = 6;
/// Port of a rule that rejects.
const REJECTED: u16 = 3;

const fn spec(chain: &'static str, port: u16, then: Then) -> RuleSpec {
    RuleSpec { chain, port, then }
}

/// Every way to a drop that leaves the walker's frame in another state.
const RULES: [RuleSpec; 15] = [
    spec("output", 1, Then::Drop),
    spec("output", 2, Then::CountAndDrop),
    spec("output", REJECTED, Then::Reject),
    spec("output", 4, Then::Jump("inner")),
    spec("output", 5, Then::Jump("middle")),
    spec("output", 7, Then::Jump("empty")),
    spec("output", 8, Then::Goto("inner")),
    spec("output", 11, Then::Accept),
    spec("output", 12, Then::Accept),
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
    /// Cookie of the namespace.
    pub cookie: u64,
    /// Handles of table, base chain, and rule; 0 for the chain's policy.
    pub handles: (u64, u64, u64),
}

impl Expected {
    /// The same in the kernel half's words.
    pub fn answer(&self) -> RuleAnswer {
        let (table, chain, rule) = self.handles;
        RuleAnswer { netns_cookie: self.cookie, table, chain, rule }
    }
}

/// A proof that can begin: where, and what this kernel's numbers are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// Inode number of its namespace.
    pub netns: u32,
    /// Offsets of `nft_chain.table`, `nft_chain.handle` and `nft_table.handle`.
    offsets: (u32, u32, u32),
    /// Lowest bit and width of `nft_rule_dp.handle`.
    handle: (u32, u32),
    /// What must come out.
    pub expected: Vec<Expected>,
}

impl Prepared {
    /// What the kernel half is to know, with nothing learnt.
    pub fn config(&self) -> RuleConfig {
        let (chain_table, chain_handle, table_handle) = self.offsets;
        RuleConfig {
            chain_table: chain_table.into(),
            chain_handle: chain_handle.into(),
            table_handle: table_handle.into(),
            rule_handle_bit: self.handle.0.into(),
            rule_handle_mask: (1 << self.handle.1) - 1,
            ..RuleConfig::default()
        }
    }
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
        // Its types are the module's, which is loaded, or the kernel's own.
        if !btf.has_struct(MODULE.1) {
            return Err(if is_loaded(MODULE.0) {
                Unproven::Other("this kernel does not describe nftables' types".to_owned())
            } else {
                Unproven::NotLoaded
            });
        }
        let rejects = is_loaded(REJECTER.0) || btf.has_function(REJECTER.1);
        let (offsets, handle) = numbers(&btf).map_err(|error| Unproven::Other(format!("{error:#}")))?;
        let prepare = || {
            let (send, orders) = channel();
            let (reports, sent) = channel();
            let (ready, made) = channel();
            thread::spawn(move || {
                // A rejecting rule would load a module.
                let made = make(rejects);
                let ports: Vec<u16> =
                    made.iter().flat_map(|(_, expected)| expected).map(|expected| expected.port).collect();
                if ready.send(made).is_err() {
                    return;
                }
                while orders.recv().is_ok() {
                    if reports.send(send_all(&ports)).is_err() {
                        return;
                    }
                }
            });
            let (netns, expected) = made.recv().context("the proof's thread failed")??;
            Ok((Self { send, sent }, Prepared { netns, offsets, handle, expected }))
        };
        prepare().map_err(|error: anyhow::Error| Unproven::Later(format!("{error:#}")))
    }

    /// Sends one packet to every port.
    pub fn send(&self) -> Result<()> {
        self.send.send(()).context("the proof's thread has ended")?;
        self.sent.recv().context("the proof's thread has ended")?
    }
}

/// Offsets and the handle's bits, as [`Prepared`] has them.
type Numbers = ((u32, u32, u32), (u32, u32));

fn numbers(btf: &Btf) -> Result<Numbers> {
    let bytes = |name: &str, path: &str| {
        let member = btf.member(name, path).with_context(|| format!("this kernel does not describe {name}.{path}"))?;
        ensure!(member.bit_offset.is_multiple_of(8), "{name}.{path} does not begin at a byte");
        anyhow::Ok(member.bit_offset / 8)
    };
    let handle = btf.member("nft_rule_dp", "handle").context("this kernel's rules have no `nft_rule_dp`")?;
    ensure!(handle.bit_offset + handle.bits <= 64 && handle.bits < 64, "a rule's handle is not in its first word");
    let last = btf.member("nft_rule_dp", "is_last").context("this kernel's rules have no mark for the last")?;
    ensure!(last.bit_offset == 0, "a rule's mark for the last is not its first bit");
    Ok((
        (bytes("nft_chain", "table")?, bytes("nft_chain", "handle")?, bytes("nft_table", "handle")?),
        (handle.bit_offset, handle.bits),
    ))
}

/// In a namespace of this thread's own: the ruleset, and what it must do.
fn make(rejects: bool) -> Result<(u32, Vec<Expected>)> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    raise_loopback().context("cannot raise the namespace's loopback")?;
    let netns = fs::metadata("/proc/thread-self/ns/net").context("cannot read the namespace's number")?.ino();
    let cookie = netns_cookie().context("cannot read the namespace's cookie")?;
    let mut expected = Vec::new();
    for spec in TABLES {
        let rules: Vec<RuleSpec> = spec.rules.iter().copied().filter(|rule| rejects || rule.port != REJECTED).collect();
        build::table(&TableSpec { rules: &rules, ..spec })?;
        let table =
            nft::tables()?.into_iter().find(|table| table.name == spec.name).context("a table is not listed")?;
        let base = nft::chains()?
            .into_iter()
            .find(|chain| chain.table == spec.name && chain.hook.is_some())
            .context("a chain is not listed")?;
        let expect = |port, rule| Expected { port, cookie, handles: (table.handle, base.handle, rule) };
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
    Ok((u32::try_from(netns).context("the namespace's number is too large")?, expected))
}

fn send_all(ports: &[u16]) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot make a socket")?;
    for port in ports {
        match socket.send_to(b"observer proof", (Ipv4Addr::LOCALHOST, *port)) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            Err(error) => return Err(error).context("a packet failed otherwise than by the drop"),
            Ok(_) => bail!("a packet to port {port} was not dropped"),
        }
    }
    Ok(())
}
