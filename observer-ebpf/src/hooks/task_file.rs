//! `iter/task_file`: every open file of every process, once at start, for sockets that are older than observer.
//!
//! `struct bpf_iter__task_file { meta; task; u32 fd; file; }`, each field in eight bytes.

use aya_ebpf::helpers::generated::bpf_sock_from_file;

use crate::kernel::{
    layout::field,
    owner,
    read::{Direct, Reader},
    sock, task,
};

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
    // SAFETY: the kernel passes a context of this shape; both fields are NULL in the closing call.
    let (process, file) = unsafe {
        (core::ptr::read_volatile(&raw const (*context).task), core::ptr::read_volatile(&raw const (*context).file))
    };
    if process == 0 || file == 0 {
        return 0;
    }
    // SAFETY: the file is a trusted pointer; the helper returns NULL for anything but a socket.
    let socket = unsafe { bpf_sock_from_file(file as *mut _) } as u64;
    let sk: u64 = Direct::field(socket, field!(socket_sk)).unwrap_or(0);
    let Some(family) = Direct::field::<u16>(sk, field!(sk_family)) else { return 0 };
    if family == AF_INET || family == AF_INET6 || family == AF_PACKET {
        owner::seed(sock::make_cookie(sk as *mut u8), task::of(process), sock::netns::<Direct>(sk));
    }
    0
}
