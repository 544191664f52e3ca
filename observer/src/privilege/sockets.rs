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
    /// Its addresses, once they were asked for; `None` in it when they cannot be read.
    addresses: Option<Option<Vec<IpAddr>>>,
}

/// All network namespaces that have a process.
#[derive(Default)]
pub(super) struct Residents {
    looked: Option<Instant>,
    /// How long that took, with asking for addresses: it must not become all that the helper does.
    took: Duration,
    homes: HashMap<u32, Home>,
}

/// Of the helper's time at most this part is spent on looking for new namespaces.
const SHARE: u32 = 10;

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

    /// True when a namespace has the address; `None` when that cannot be read.
    pub(super) fn owns(&mut self, netns: u32, address: IpAddr) -> Option<bool> {
        if self.older_than(FRESH) || !self.homes.contains_key(&netns) && self.older_than(STALE) {
            self.look();
        }
        match self.homes.get_mut(&netns) {
            Some(home) => Some(home.addresses(netns).as_ref()?.contains(&address)),
            // Nobody is in there, but it may be bound to a path.
            None => Some(netns::inside(Some(netns), addresses).ok()?.ok()?.contains(&address)),
        }
    }

    /// Inode numbers of the sockets in a namespace that can have sent such a packet.
    pub(super) fn sockets(&mut self, wanted: &Wanted, netns: u32) -> Vec<u64> {
        let gone = self.homes.get(&netns).is_none_or(|home| !netns::is_in(home.pid, netns));
        if gone && self.older_than(STALE) {
            self.look();
        }
        let Some(home) = self.homes.get(&netns) else { return Vec::new() };
        let sockets = sockets_of(home.pid, wanted);
        // The number may be another process's, elsewhere, by now.
        if netns::is_in(home.pid, netns) { sockets } else { Vec::new() }
    }

    fn older_than(&self, limit: Duration) -> bool {
        self.looked.is_none_or(|looked| looked.elapsed() > limit.max(self.took * SHARE))
    }

    fn with_address(&mut self, address: IpAddr, forwarder: u32) -> Vec<u32> {
        let began = Instant::now();
        let mut found = Vec::new();
        for (netns, home) in self.homes.iter_mut().filter(|(netns, _)| **netns != forwarder) {
            if home.addresses(*netns).as_ref().is_some_and(|addresses| addresses.contains(&address)) {
                found.push(*netns);
            }
        }
        self.took += began.elapsed();
        found
    }

    fn look(&mut self) {
        let began = Instant::now();
        self.homes.clear();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let namespace = fs::metadata(entry.path().join("ns/net")).map(|meta| meta.ino());
            if let Some(number) = namespace.ok().and_then(|number| u32::try_from(number).ok()) {
                self.homes.entry(number).or_insert(Home { pid, addresses: None });
            }
        }
        self.looked = Some(Instant::now());
        self.took = began.elapsed();
    }
}

impl Home {
    /// Its addresses; `None` when they cannot be read.
    fn addresses(&mut self, netns: u32) -> &Option<Vec<IpAddr>> {
        let pid = self.pid;
        self.addresses.get_or_insert_with(|| netns::inside_of(pid, netns, addresses).ok()?.ok())
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
            && any(row.local.ip().to_canonical(), wanted.source.0)
            && any(row.remote.ip().to_canonical(), wanted.destination.0)
            && (row.remote.port() == 0 || row.remote.port() == wanted.destination.1)
    };
    let inodes = |rows: Vec<Row>, fits: &dyn Fn(&Row) -> bool| -> Vec<u64> {
        rows.into_iter().filter(|row| row.inode != 0 && fits(row)).map(|row| row.inode).collect()
    };
    match wanted.protocol {
        protocol::TCP => {
            // A listener has a connection's port too, and sends nothing of it.
            let connected = |row: &Row| exact(row) && row.remote.port() != 0;
            inodes(tcp(pid, v6), &connected)
        }
        protocol::UDP => {
            let mut rows = table(pid, "udp6");
            // A socket of the newer family sends IPv4 too.
            if !v6 {
                rows.extend(table(pid, "udp"));
            }
            inodes(rows, &exact)
        }
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
    let Ok(process) = process else { return Vec::new() };
    // A socket of the newer family may have an IPv4 connection.
    let newer = process.tcp6().unwrap_or_default();
    let older = if v6 { Vec::new() } else { process.tcp().unwrap_or_default() };
    let row =
        |row: procfs::net::TcpNetEntry| Row { local: row.local_address, remote: row.remote_address, inode: row.inode };
    newer.into_iter().chain(older).map(row).collect()
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
