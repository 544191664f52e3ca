//! `iter/task_file`: every open file of every process, once at start, for sockets that are older than observer, and for
//! connections that hang already.
//!
//! `struct bpf_iter__task_file { meta; task; u32 fd; file; }`, each field in eight bytes.

use aya_ebpf::{
    btf_maps::PerCpuArray,
    helpers::generated::{bpf_seq_write, bpf_sock_from_file},
    macros::btf_map,
};
use observer_ebpf::{abi::HangingRecord, logic::packet::protocol};

use crate::kernel::{
    layout::field,
    owner,
    read::{Direct, Probe, Reader},
    sock, task, time,
};

/// Room for one record.
#[btf_map]
static HANGING: PerCpuArray<HangingRecord, 1> = PerCpuArray::new();

/// `struct bpf_iter__task_file` of the kernel's `task_iter.c`, unchanged since 5.8.
#[repr(C)]
pub struct TaskFile {
    meta: u64,
    task: u64,
    fd: u64,
    file: u64,
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const AF_PACKET: u16 = 17;

#[unsafe(link_section = "iter/task_file")]
#[unsafe(no_mangle)]
extern "C" fn seed_task_file(context: *const TaskFile) -> i32 {
    seed(context, |sk| sock::traced_cookie(sk as *mut u8))
}

/// The same for kernels whose verifier does not trust the socket of a file: reads cookies, and makes none.
#[unsafe(link_section = "iter/task_file")]
#[unsafe(no_mangle)]
extern "C" fn seed_with_diag(context: *const TaskFile) -> i32 {
    seed(context, |sk| Probe::field(sk, field!(sk_cookie)).unwrap_or(0))
}

#[inline(always)]
fn seed(context: *const TaskFile, cookie_of: impl FnOnce(u64) -> u64) -> i32 {
    // SAFETY: the kernel passes a context of this shape; both fields are NULL in the closing call.
    let (meta, process, file) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*context).meta),
            core::ptr::read_volatile(&raw const (*context).task),
            core::ptr::read_volatile(&raw const (*context).file),
        )
    };
    if process == 0 || file == 0 {
        return 0;
    }
    // SAFETY: the file is a trusted pointer; the helper returns NULL for anything but a socket.
    let socket = unsafe { bpf_sock_from_file(file as *mut _) } as u64;
    let sk: u64 = Direct::field(socket, field!(socket_sk)).unwrap_or(0);
    let Some(family) = Direct::field::<u16>(sk, field!(sk_family)) else { return 0 };
    if family == AF_INET || family == AF_INET6 || family == AF_PACKET {
        let (cookie, process) = (cookie_of(sk), task::of(process));
        if cookie == 0 {
            return 0;
        }
        owner::seed(cookie, process, sock::netns::<Direct>(sk));
        let state: u8 = Direct::field(sk, field!(sk_state)).unwrap_or(0);
        let kind: u16 = Direct::field(sk, field!(sk_protocol)).unwrap_or(0);
        // Not before its first SYN: an early state, or a connect that waits for the first write.
        let first_sent: u32 = Probe::field(sk, field!(tcp_first_sent)).unwrap_or(0);
        if u32::from(state) == sock::SYN_SENT && kind == u16::from(protocol::TCP) && first_sent != 0 {
            let Some(record) = HANGING.get_ptr_mut(0) else { return 0 };
            // `struct bpf_iter_meta` begins with the file that is written into.
            let seq: u64 = Direct::field(meta, 0).unwrap_or(0);
            // Never so; but older verifiers follow what would be.
            if seq == 0 {
                return 0;
            }
            // SAFETY: the room is this CPU's, and the walk runs once and alone; the file is a trusted pointer.
            unsafe {
                fill(record, sk, first_sent, family == AF_INET6);
                let cred: u64 = Probe::field(file, field!(file_cred)).unwrap_or(0);
                (*record).gid = Probe::field(cred, field!(cred_fsgid)).unwrap_or(u32::MAX);
                (*record).cookie = cookie;
                (*record).inode = sock::inode(socket);
                (*record).task = process;
                bpf_seq_write(seq as *mut _, record.cast(), size_of::<HangingRecord>() as u32);
            }
        }
    }
    0
}

/// What a connection says that has had no answer.
///
/// `tcp_connect` notes the first SYN's time in `retrans_stamp`, in milliseconds of the monotonic clock, and nothing changes
/// it before there is an answer. At every time-out what was sent again is taken for lost, and counted in `retrans_out` anew
/// if the network stack took it: 0 after a packet that a hook of this namespace dropped (`tcp_retransmit_skb`, read in 6.18).
///
/// # Safety
/// `record` must be writable.
#[inline(always)]
unsafe fn fill(record: *mut HangingRecord, sk: u64, first_sent: u32, v6: bool) {
    let retransmitted: u32 = Probe::field(sk, field!(tcp_retransmitted)).unwrap_or(0);
    let net: u64 = Probe::field(sk, field!(sk_net)).unwrap_or(0);
    let own: u8 = Probe::field(sk, field!(connection_syn_retries)).unwrap_or(0);
    let default: u8 = Probe::field(net, field!(net_syn_retries)).unwrap_or(0);
    // SAFETY: the caller's promise.
    let record = unsafe { &mut *record };
    record.time_ns = time::boot_ns();
    if v6 {
        record.local = Probe::field(sk, field!(sk_local_v6)).unwrap_or_default();
        record.remote = Probe::field(sk, field!(sk_remote_v6)).unwrap_or_default();
    } else {
        record.local[..4].copy_from_slice(&Probe::field::<[u8; 4]>(sk, field!(sk_local_v4)).unwrap_or_default());
        record.remote[..4].copy_from_slice(&Probe::field::<[u8; 4]>(sk, field!(sk_remote_v4)).unwrap_or_default());
    }
    record.netns = sock::netns::<Probe>(sk);
    record.uid = Probe::field(sk, field!(sk_uid)).unwrap_or(u32::MAX);
    record.mark = Probe::field(sk, field!(sk_mark)).unwrap_or(0);
    record.age_ms = time::monotonic_ms().wrapping_sub(first_sent);
    record.local_port = Probe::field(sk, field!(sk_num)).unwrap_or(0);
    record.remote_port = u16::from_be(Probe::field(sk, field!(sk_dport)).unwrap_or(0));
    record.v6 = u8::from(v6);
    record.sent_again = Probe::field(sk, field!(connection_sent_again)).unwrap_or(0);
    record.left = u8::from(retransmitted != 0);
    record.bound = u8::from(Probe::field::<u32>(sk, field!(sk_bound)).unwrap_or(1) != 0);
    record.retries = if own != 0 { own } else { default };
    record.linear = Probe::field(net, field!(net_syn_linear)).unwrap_or(0);
}
