//! The loopback interface of a network namespace that observer made.

use std::io;

use anyhow::Result;
use netlink_bindings::rt_link;
use netlink_socket2::NetlinkSocket;

/// Index of the loopback interface in every namespace, and `IFF_UP`.
const LOOPBACK: i32 = 1;
const UP: u32 = 1;

/// Raises the loopback interface of this thread's namespace.
pub fn raise_loopback() -> Result<()> {
    let mut header = rt_link::Ifinfomsg::new();
    header.ifi_index = LOOPBACK;
    header.ifi_flags = UP;
    header.ifi_change = UP;
    let mut socket = NetlinkSocket::new();
    let request = rt_link::Request::new().op_newlink_do(&header);
    socket.request(&request)?.recv_ack().map_err(io::Error::from)?;
    Ok(())
}
