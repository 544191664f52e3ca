//! A small ruleset, made over netlink in this thread's network namespace.

use std::{ffi::CString, io};

use anyhow::{Context, Result};
use netlink_bindings::{
    nftables::{self, CmpOps, Nfgenmsg, PayloadBase, PushExprListAttrs, RejectInetCode, RejectTypes, VerdictCode},
    traits::Pusher,
};
use netlink_socket2::NetlinkSocket;

use super::{
    netfilter::{ACCEPT, DROP, family, hook},
    nft::SUBSYSTEM,
};

/// `NFT_REG_VERDICT` and `NFT_REG_1`.
const VERDICT_REGISTER: u32 = 0;
const FIRST_REGISTER: u32 = 1;
/// Where a UDP header has its destination port.
const DESTINATION_PORT: (u32, u32) = (2, 2);

/// What a rule does with the datagrams to its port.
#[derive(Clone, Copy, Debug)]
pub enum Then {
    /// Drops them.
    Drop,
    /// Counts and drops them.
    CountAndDrop,
    /// Rejects them.
    Reject,
    /// Lets them pass, to the next table.
    Accept,
    /// Lets another chain judge, and goes on if that does not.
    Jump(&'static str),
    /// Lets another chain judge.
    Goto(&'static str),
}

/// A rule that matches UDP datagrams by their destination port.
#[derive(Clone, Copy, Debug)]
pub struct RuleSpec {
    /// Chain.
    pub chain: &'static str,
    /// Destination port.
    pub port: u16,
    /// What it does.
    pub then: Then,
}

/// A table of the family `inet`.
#[derive(Clone, Copy, Debug)]
pub struct TableSpec<'a> {
    /// Name.
    pub name: &'a str,
    /// Priority of its base chain `output`, on the hook of that name.
    pub priority: i32,
    /// That chain drops what no rule judges; else it lets it pass.
    pub drops: bool,
    /// Its other chains.
    pub chains: &'a [&'a str],
    /// Rules in their order.
    pub rules: &'a [RuleSpec],
}

/// Adds a table.
pub fn table(spec: &TableSpec<'_>) -> Result<()> {
    let (chains, rules) = (spec.chains, spec.rules);
    let table = CString::new(spec.name)?;
    let mut socket = NetlinkSocket::new();
    let messages = u32::try_from(3 + chains.len() + 1 + rules.len())?;
    let mut batch = nftables::Chained::new(socket.reserve_seq(messages));
    let mut envelope = Nfgenmsg::new();
    envelope.set_res_id(SUBSYSTEM);
    let inet = Nfgenmsg { nfgen_family: family::INET, ..Nfgenmsg::new() };
    batch.request().op_batch_begin_do(&envelope);
    batch.request().set_create().op_newtable_do(&inet).encode().push_name(&table);
    // Before the base chain, so that its handle is not the same number in every table.
    for chain in chains {
        batch
            .request()
            .set_create()
            .op_newchain_do(&inet)
            .encode()
            .push_table(&table)
            .push_name(&CString::new(*chain)?);
    }
    batch
        .request()
        .set_create()
        .op_newchain_do(&inet)
        .encode()
        .push_table(&table)
        .push_name(c"output")
        .nested_hook()
        .push_num(hook::LOCAL_OUT)
        .push_priority(spec.priority)
        .end_nested()
        .push_policy(if spec.drops { DROP } else { ACCEPT })
        .push_type(c"filter");
    for rule in rules {
        let mut request = batch.request().set_create().set_append().op_newrule_do(&inet);
        let expressions =
            request.encode().push_table(&table).push_chain(&CString::new(rule.chain)?).nested_expressions();
        let matched = to_port(expressions, rule.port);
        match rule.then {
            Then::Drop => verdict(matched, VerdictCode::Drop, None)?,
            Then::Accept => verdict(matched, VerdictCode::Accept, None)?,
            Then::CountAndDrop => {
                let counted = matched.nested_elem().nested_data_counter().end_nested().end_nested();
                verdict(counted, VerdictCode::Drop, None)?;
            }
            Then::Reject => {
                matched
                    .nested_elem()
                    .nested_data_reject()
                    .push_type(RejectTypes::IcmpxUnreach as u32)
                    .push_icmp_code(RejectInetCode::IcmpxPortUnreach as u8);
            }
            Then::Jump(chain) => verdict(matched, VerdictCode::Jump, Some(chain))?,
            Then::Goto(chain) => verdict(matched, VerdictCode::Goto, Some(chain))?,
        }
    }
    batch.request().op_batch_end_do(&envelope);
    let batch = batch.finalize();
    socket.request_chained(&batch)?.recv_all().map_err(io::Error::from).context("cannot add nftables rules")?;
    Ok(())
}

fn to_port<P: Pusher>(list: PushExprListAttrs<P>, port: u16) -> PushExprListAttrs<P> {
    let (offset, bytes) = DESTINATION_PORT;
    list.nested_elem()
        .nested_data_payload()
        .push_dreg(FIRST_REGISTER)
        .push_base(PayloadBase::TransportHeader as u32)
        .push_offset(offset)
        .push_len(bytes)
        .end_nested()
        .end_nested()
        .nested_elem()
        .nested_data_cmp()
        .push_sreg(FIRST_REGISTER)
        .push_op(CmpOps::Eq as u32)
        .nested_data()
        .push_value(&port.to_be_bytes())
        .end_nested()
        .end_nested()
        .end_nested()
}

fn verdict<P: Pusher>(list: PushExprListAttrs<P>, code: VerdictCode, chain: Option<&str>) -> Result<()> {
    let verdict = list
        .nested_elem()
        .nested_data_immediate()
        .push_dreg(VERDICT_REGISTER)
        .nested_data()
        .nested_verdict()
        .push_code(code as u32);
    if let Some(chain) = chain {
        verdict.push_chain(&CString::new(chain)?);
    }
    Ok(())
}
