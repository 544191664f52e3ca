//! Flow records: told for sockets of other namespaces than the host's, whose packets the host forwards without their
//! socket.

use observer_ebpf::abi::{FlowRecord, ProcessEvent};

use super::{expected, layout::field, owner, process, read::Reader};

const AF_INET6: u16 = 10;

/// Addresses and ports of a `struct sock`.
#[inline(always)]
pub fn addresses<R: Reader>(flow: &mut FlowRecord, sk: u64) {
    flow.local_port = R::field(sk, field!(sk_num)).unwrap_or(0);
    flow.remote_port = u16::from_be(R::field(sk, field!(sk_dport)).unwrap_or(0));
    if R::field::<u16>(sk, field!(sk_family)) == Some(AF_INET6) {
        flow.v6 = 1;
        flow.local = R::field(sk, field!(sk_local_v6)).unwrap_or_default();
        flow.remote = R::field(sk, field!(sk_remote_v6)).unwrap_or_default();
    } else {
        let v4 = |offset: u32| R::field::<[u8; 4]>(sk, offset).unwrap_or_default();
        flow.local[..4].copy_from_slice(&v4(field!(sk_local_v4)));
        flow.remote[..4].copy_from_slice(&v4(field!(sk_remote_v4)));
    }
}

/// Hands over the flow of a connection that begins, and notes it, so that its answer is recognised.
#[inline(always)]
pub fn begin(cookie: u64, fill: impl Fn(&mut FlowRecord)) {
    let netns = owner::get(cookie).map_or(0, |owner| owner.netns);
    if netns != 0 {
        let mut flow = FlowRecord { netns, ..EMPTY };
        fill(&mut flow);
        expected::begin(&flow);
    }
    emit(cookie, fill);
}

const EMPTY: FlowRecord = FlowRecord {
    since_ns: 0,
    local: [0; 16],
    remote: [0; 16],
    netns: 0,
    uid: 0,
    local_port: 0,
    remote_port: 0,
    protocol: 0,
    v6: 0,
    closed: 0,
    source: 0,
};

/// Hands over the flow of the socket with this cookie, if it belongs to another namespace.
#[inline(always)]
pub fn emit(cookie: u64, fill: impl FnOnce(&mut FlowRecord)) {
    let Some(owner) = owner::get(cookie) else { return };
    // Several holders make no answer.
    if owner.holders > 1 || owner.netns == field!(host_netns) || owner.netns == 0 {
        return;
    }
    let mut flow = FlowRecord { since_ns: owner.bound_ns, netns: owner.netns, ..EMPTY };
    fill(&mut flow);
    let mut record = process::bare(owner.task, ProcessEvent::Flow);
    record.args_bytes = size_of::<FlowRecord>() as u16;
    process::emit_with(&process::Whole { record, flow });
}
