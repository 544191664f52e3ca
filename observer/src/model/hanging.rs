//! A connection that waits for its first answer.

use std::{net::SocketAddr, time::Duration};

use observer_ebpf::abi::Task;

/// TCP's first time-out and its longest (`TCP_TIMEOUT_INIT` and `TCP_RTO_MAX` of `include/net/tcp.h`).
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(120);

/// A connection in SYN_SENT, when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hanging {
    /// When it was looked at, nanoseconds of `CLOCK_BOOTTIME`.
    pub boot_ns: u64,
    /// Socket cookie.
    pub cookie: u64,
    /// Inode number of the socket file; `None` without one.
    pub inode: Option<u64>,
    /// User id of the socket's creation.
    pub uid: u32,
    /// Group with which its file was opened; `None` where that is not known.
    pub gid: Option<u32>,
    /// Its mark.
    pub mark: u32,
    /// It is bound to an interface.
    pub is_bound: bool,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Local address and port.
    pub local: SocketAddr,
    /// Where it wants to go.
    pub remote: SocketAddr,
    /// Since the first SYN.
    pub age: Duration,
    /// SYNs that were sent again.
    pub sent_again: u8,
    /// The last of them left the network stack of its namespace; `None` before anything was sent again.
    pub left: Option<bool>,
    /// SYNs that are sent again at the first interval, and after those at doubled ones; `None` when that is not known.
    pub schedule: Option<(u8, u8)>,
    /// Processes that have the socket open.
    pub holders: Vec<Task>,
}

impl Hanging {
    /// When TCP gives up at the latest, from now on; `None` where the packets that were sent do not follow the kernel's
    /// schedule, so that it is not known.
    pub fn gives_up_in(&self) -> Option<Duration> {
        let times = times(self.schedule?);
        let last = times.last()?;
        let due = times.iter().filter(|time| **time <= self.age).count();
        if due.abs_diff(usize::from(self.sent_again)) > 1 {
            return None;
        }
        last.checked_sub(self.age)
    }
}

/// Times of the time-outs since the first SYN. At each but the last a SYN is sent again (`tcp_retransmit_timer`).
fn times((linear, doubled): (u8, u8)) -> Vec<Duration> {
    let (mut interval, mut at) = (FIRST, Duration::ZERO);
    let limit = u32::from(linear) + u32::from(doubled);
    (0..=limit)
        .map(|number| {
            at += interval;
            if number >= u32::from(linear) {
                interval = LONGEST.min(interval * 2);
            }
            at
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hanging(age: u64, sent_again: u8, schedule: Option<(u8, u8)>) -> Hanging {
        Hanging {
            boot_ns: 0,
            cookie: 1,
            inode: None,
            uid: 0,
            gid: None,
            mark: 0,
            is_bound: false,
            netns: 1,
            local: "10.0.0.1:1".parse().unwrap(),
            remote: "10.0.0.2:443".parse().unwrap(),
            age: Duration::from_secs(age),
            sent_again,
            left: None,
            schedule,
            holders: Vec::new(),
        }
    }

    #[test]
    fn tcp_gives_up_when_the_kernels_pages_say() {
        assert_eq!(times((0, 6)).last(), Some(&Duration::from_secs(127)), "tcp_syn_retries of 6, as ip-sysctl says");
        assert_eq!(times((4, 6)).last(), Some(&Duration::from_secs(131)), "since 6.5");
        assert_eq!(times((0, 0)), [FIRST]);
        assert_eq!(times((0, 8))[8] - times((0, 8))[7], LONGEST);
    }

    #[test]
    fn what_does_not_follow_the_schedule_has_no_end() {
        assert_eq!(hanging(41, 5, Some((0, 6))).gives_up_in(), Some(Duration::from_secs(86)));
        assert_eq!(hanging(41, 1, Some((0, 6))).gives_up_in(), None);
        assert_eq!(hanging(500, 6, Some((0, 6))).gives_up_in(), None);
        assert_eq!(hanging(41, 5, None).gives_up_in(), None);
    }
}
