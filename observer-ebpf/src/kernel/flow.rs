//! Flow records: told for sockets of other namespaces than the host's, whose packets the host forwards without their
//! socket.

use observer_ebpf::abi::{FlowRecord, ProcessEvent};

use super::{layout::field, owner, process};

/// Hands over the flow of the socket with this cookie, if it belongs to another namespace.
#[inline(always)]
pub fn emit(cookie: u64, fill: impl FnOnce(&mut FlowRecord)) {
    let Some(owner) = owner::get(cookie) else { return };
    if owner.netns == field!(host_netns) || owner.netns == 0 {
        return;
    }
    let mut flow = FlowRecord {
        since_ns: owner.bound_ns,
        local: [0; 16],
        remote: [0; 16],
        netns: owner.netns,
        local_port: 0,
        remote_port: 0,
        protocol: 0,
        v6: 0,
        closed: 0,
        reserved: [0; 5],
    };
    fill(&mut flow);
    let Some(scratch) = process::scratch() else { return };
    // SAFETY: the scratch space is this CPU's, and large enough.
    unsafe {
        (*scratch).record = process::bare(owner.task, ProcessEvent::Flow);
        (*scratch).record.args_bytes = size_of::<FlowRecord>() as u16;
        (&raw mut (*scratch).data).cast::<FlowRecord>().write_unaligned(flow);
        process::emit_scratch(scratch);
    }
}
