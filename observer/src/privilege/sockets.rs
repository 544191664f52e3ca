//! Questions about another network namespace: its own addresses, and which socket has a port there.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use netlink_bindings::rt_addr;
use netlink_socket2::NetlinkSocket;
use observer_ebpf::logic::packet::protocol;
use procfs::{FromReadSI, current_system_info, net::UdpNetEntries, process::Process};

use super::netns;
use crate::model::Wanted;

/// How long it is good for which process lives in which namespace.
const FRESH: Duration = Duration::from_secs(2);

/// A namespace that was not there at the last look may be new; not sooner than this after it.
const STALE: Duration = Duration::from_millis(100);

/// Addresses of the interfaces in this thread's namespace.
pub(super) fn addresses() -> Result<Vec<IpAddr>> {
    let mut socket = NetlinkSocket::new();
    let request = rt_addr::Request::new().op_getaddr_dump(&rt_addr::Ifaddrmsg::new());
    let mut replies = socket.request(&request).context("cannot ask for addresses")?;
    let mut addresses = Vec::new();
    while let Some(reply) = replies.recv() {
        let (_, attributes) = reply.map_err(io::Error::from).context("cannot list addresses")?;
        addresses.extend(attributes.get_local().or_else(|_| attributes.get_address()).ok());
    }
    Ok(addresses)
}

/// A network namespace with somebody in it.
struct Home {
    /// A process there, through which the namespace's files are read.
    pid: u32,
    /// Its addresses, once they were asked for.
    addresses: Option<Vec<IpAddr>>,
}

/// All network namespaces that have a process.
#[derive(Default)]
pub(super) struct Residents {
    looked: Option<Instant>,
    homes: HashMap<u32, Home>,
}

impl Residents {
    /// Namespaces but the forwarding one that have an address.
    pub(super) fn homes(&mut self, address: IpAddr, forwarder: u32) -> Vec<u32> {
        if self.older_than(FRESH) {
            self.look();
        }
        let found = self.with_address(address, forwarder);
        // The namespace may be new.
        if found.is_empty() && self.older_than(STALE) {
            self.look();
            return self.with_address(address, forwarder);
        }
        found
    }

    /// Inode numbers of the sockets in a namespace that can have sent such a packet.
    pub(super) fn sockets(&mut self, wanted: &Wanted, netns: u32) -> Vec<u64> {
        let gone = self.homes.get(&netns).is_none_or(|home| !Path::new(&format!("/proc/{}", home.pid)).exists());
        if gone && self.older_than(STALE) {
            self.look();
        }
        self.homes.get(&netns).map(|home| sockets_of(home.pid, wanted)).unwrap_or_default()
    }

    fn older_than(&self, limit: Duration) -> bool {
        self.looked.is_none_or(|looked| looked.elapsed() > limit)
    }

    fn with_address(&mut self, address: IpAddr, forwarder: u32) -> Vec<u32> {
        let mut found = Vec::new();
        for (netns, home) in self.homes.iter_mut().filter(|(netns, _)| **netns != forwarder) {
            let addresses = home.addresses.get_or_insert_with(|| {
                netns::inside(Some(*netns), addresses).and_then(|addresses| addresses).unwrap_or_default()
            });
            if addresses.contains(&address) {
                found.push(*netns);
            }
        }
        found
    }

    fn look(&mut self) {
        self.looked = Some(Instant::now());
        self.homes.clear();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let namespace = fs::metadata(entry.path().join("ns/net")).map(|meta| meta.ino());
            if let Some(number) = namespace.ok().and_then(|number| u32::try_from(number).ok()) {
                self.homes.entry(number).or_insert(Home { pid, addresses: None });
            }
        }
    }
}

/// A row of a socket table.
struct Row {
    local: SocketAddr,
    remote: SocketAddr,
    inode: u64,
}

fn sockets_of(pid: u32, wanted: &Wanted) -> Vec<u64> {
    let v6 = wanted.source.0.is_ipv6();
    let exact = |row: &Row| {
        let any = |known: IpAddr, seen: IpAddr| known.is_unspecified() || known == seen;
        row.local.port() == wanted.source.1
            && any(row.local.ip(), wanted.source.0)
            && any(row.remote.ip(), wanted.destination.0)
            && (row.remote.port() == 0 || row.remote.port() == wanted.destination.1)
    };
    let inodes = |rows: Vec<Row>, fits: &dyn Fn(&Row) -> bool| -> Vec<u64> {
        rows.into_iter().filter(|row| row.inode != 0 && fits(row)).map(|row| row.inode).collect()
    };
    match wanted.protocol {
        protocol::TCP => inodes(tcp(pid, v6), &exact),
        protocol::UDP => inodes(table(pid, if v6 { "udp6" } else { "udp" }), &exact),
        protocol::ICMP | protocol::ICMPV6 => {
            // A ping socket has the identifier for a port; a raw socket has its protocol, and sends what it likes.
            let found = inodes(table(pid, if v6 { "icmp6" } else { "icmp" }), &exact);
            if found.is_empty() { raw(pid, wanted) } else { found }
        }
        _ => raw(pid, wanted),
    }
}

fn raw(pid: u32, wanted: &Wanted) -> Vec<u64> {
    let rows = table(pid, if wanted.source.0.is_ipv6() { "raw6" } else { "raw" });
    let fits = |row: &Row| row.inode != 0 && row.local.port() == u16::from(wanted.protocol);
    rows.into_iter().filter(fits).map(|row| row.inode).collect()
}

fn tcp(pid: u32, v6: bool) -> Vec<Row> {
    let Ok(process) = i32::try_from(pid).map(Process::new) else { return Vec::new() };
    let rows = process.and_then(|process| if v6 { process.tcp6() } else { process.tcp() });
    let row =
        |row: procfs::net::TcpNetEntry| Row { local: row.local_address, remote: row.remote_address, inode: row.inode };
    rows.unwrap_or_default().into_iter().map(row).collect()
}

/// UDP's table; those of ping and raw sockets have the same form.
fn table(pid: u32, name: &str) -> Vec<Row> {
    let path = format!("/proc/{pid}/net/{name}");
    let Ok(rows) = UdpNetEntries::from_file(Path::new(&path), current_system_info()) else { return Vec::new() };
    rows.0
        .into_iter()
        .map(|row| Row { local: row.local_address, remote: row.remote_address, inode: row.inode })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_socket_is_found_by_its_port() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let wanted = Wanted {
            source: ("127.0.0.1".parse().unwrap(), port),
            destination: ("127.0.0.1".parse().unwrap(), 9),
            protocol: protocol::UDP,
        };
        let own = u32::try_from(fs::metadata("/proc/self/ns/net").unwrap().ino()).unwrap();
        assert_eq!(Residents::default().sockets(&wanted, own).len(), 1);
        assert!(Residents::default().sockets(&wanted, 1).is_empty(), "no such namespace");
        let other = Wanted { source: ("127.0.0.1".parse().unwrap(), port ^ 1), ..wanted };
        assert!(Residents::default().sockets(&other, own).is_empty());
    }

    #[test]
    fn loopback_is_an_own_address() {
        assert!(addresses().unwrap().contains(&"127.0.0.1".parse().unwrap()));
    }
}
