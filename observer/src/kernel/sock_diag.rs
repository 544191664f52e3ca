//! Cookies for sockets that have none yet: the kernel gives one to each socket that it lists by `sock_diag`.

use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

use super::{
    btf::Btf,
    netlink::{Body, Netlink},
};

/// `NETLINK_SOCK_DIAG`, `SOCK_DIAG_BY_FAMILY`, and a `struct inet_diag_msg`.
const PROTOCOL: isize = 4;
const BY_FAMILY: u16 = 20;
const FIXED: usize = 72;
/// Sizes of `struct inet_diag_req_v2` and `struct packet_diag_req`.
const INET_QUESTION: usize = 56;
const PACKET_QUESTION: usize = 20;
/// Many namespaces cannot delay the start longer than this.
const LIMIT: Duration = Duration::from_secs(2);

/// Kinds of sockets: the kernel's module and function that list them, and their families and protocols.
const KINDS: [(&str, &str, &[i32], i32); 4] = [
    ("tcp_diag", "tcp_diag_dump", &[libc::AF_INET, libc::AF_INET6], libc::IPPROTO_TCP),
    ("udp_diag", "udp_diag_dump", &[libc::AF_INET, libc::AF_INET6], libc::IPPROTO_UDP),
    ("raw_diag", "raw_diag_dump", &[libc::AF_INET, libc::AF_INET6], libc::IPPROTO_RAW),
    ("af_packet_diag", "packet_diag_dump", &[libc::AF_PACKET], 0),
];

/// Gives every TCP, UDP, raw and packet socket of every namespace that has a process a cookie, as far as the kernel lists them
/// without loading anything for it. An error where it lists neither TCP's nor UDP's.
pub(crate) fn give_cookies() -> Result<()> {
    let btf = Btf::of_kernel()?;
    let is_there =
        |module: &str, function: &str| Path::new("/sys/module").join(module).exists() || btf.has_function(function);
    let kinds: Vec<_> = KINDS.into_iter().filter(|(module, function, ..)| is_there(module, function)).collect();
    ensure!(kinds.iter().any(|(module, ..)| *module == "tcp_diag"), "tcp_diag is not loaded");
    ensure!(kinds.iter().any(|(module, ..)| *module == "udp_diag"), "udp_diag is not loaded");
    let work = move || {
        let began = Instant::now();
        let mut known = HashSet::new();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        for pid in [std::process::id(), 1].into_iter().chain(pids) {
            let Ok(namespace) = File::open(format!("/proc/{pid}/ns/net")) else { continue };
            let Ok(number) = namespace.metadata().map(|of| of.ino()) else { continue };
            if !known.insert(number) {
                continue;
            }
            if began.elapsed() > LIMIT {
                log::debug!("not every network namespace's sockets were listed");
                break;
            }
            // It may be gone by now.
            if setns(namespace, CloneFlags::CLONE_NEWNET).is_ok() {
                for (family, protocol) in kinds.iter().flat_map(|of| of.2.iter().map(|family| (*family, of.3))) {
                    if let Err(error) = list(family, protocol) {
                        log::debug!("{error:#}");
                    }
                }
            }
        }
    };
    thread::spawn(work).join().ok().context("the thread that lists sockets failed")
}

/// Lists sockets of the calling thread's namespace.
fn list(family: i32, protocol: i32) -> Result<()> {
    let size = if family == libc::AF_PACKET { PACKET_QUESTION } else { INET_QUESTION };
    let mut question = vec![0; size];
    question[0] = u8::try_from(family)?;
    question[1] = u8::try_from(protocol)?;
    if size == INET_QUESTION {
        // Every state.
        question[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    }
    let mut netlink = Netlink::open(PROTOCOL, FIXED)?;
    netlink.dump_each(BY_FAMILY, &Body::new(&question), |_| Ok(())).context("sockets cannot be listed")
}
