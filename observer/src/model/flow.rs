//! Where the sockets of other namespaces sent to.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::process::ProcessId;

/// A socket's flow, as the eBPF side told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who has the socket.
    pub process: ProcessId,
    /// Inode number of its network namespace.
    pub netns: u32,
    /// When the socket was connected or created, nanoseconds of `CLOCK_BOOTTIME`.
    pub since_ns: u64,
    /// When it was closed, where that is known.
    pub until_ns: Option<u64>,
    /// IP protocol number.
    pub protocol: u8,
    /// It is of IPv6.
    pub v6: bool,
    /// Local address, where it is bound to one.
    pub local: Option<IpAddr>,
    /// Remote address, where it is connected.
    pub remote: Option<IpAddr>,
    /// Local port; of a ping socket its identifier.
    pub local_port: u16,
    /// Remote port; 0 when not connected.
    pub remote_port: u16,
}

/// A packet's addresses as its sender's socket saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Wanted {
    /// Source address and port (of an echo request its identifier).
    pub source: (IpAddr, u16),
    /// Destination address and port; port 0 where the protocol has none.
    pub destination: (IpAddr, u16),
    /// IP protocol number.
    pub protocol: u8,
}
