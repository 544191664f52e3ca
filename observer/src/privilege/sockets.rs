//! Questions about another network namespace: its own addresses, and which socket has a port there.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use netlink_bindings::rt_addr;
use netlink_socket2::NetlinkSocket;
use observer_ebpf::logic::packet::protocol;
use procfs::{
    FromReadSI, current_system_info,
    net::{TcpNetEntries, UdpNetEntries},
};

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
    /// A process there, by which the namespace is found again.
    pid: u32,
    /// More of them, up to [`MAX_RESIDENTS`].
    others: Vec<u32>,
    /// Its addresses, once they were asked for; `None` in it when they cannot be read.
    addresses: Option<Option<Vec<IpAddr>>>,
}

/// Processes of a namespace that are remembered beside the first.
const MAX_RESIDENTS: usize = 32;

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

    /// A process that lives in a namespace, as far as that is known without looking at all processes for every question.
    pub(super) fn resident(&mut self, netns: u32) -> Option<u32> {
        let known = |homes: &HashMap<u32, Home>| {
            let home = homes.get(&netns)?;
            netns::eldest(std::iter::once(home.pid).chain(home.others.iter().copied()), netns)
        };
        if let Some(pid) = known(&self.homes) {
            return Some(pid);
        }
        if self.older_than(STALE) {
            self.look();
        }
        known(&self.homes)
    }

    /// Inode numbers of the sockets in a namespace that can have sent such a packet.
    pub(super) fn sockets(&mut self, wanted: &Wanted, netns: u32) -> Vec<u64> {
        let gone = self.homes.get(&netns).is_none_or(|home| !netns::is_in(home.pid, netns));
        if gone && self.older_than(STALE) {
            self.look();
        }
        let Some(home) = self.homes.get(&netns) else { return Vec::new() };
        let wanted = *wanted;
        netns::inside_of(home.pid, netns, move || sockets_of(&wanted)).unwrap_or_default()
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
        for pid in netns::pids() {
            let namespace = fs::metadata(format!("/proc/{pid}/ns/net")).map(|meta| meta.ino());
            let Some(number) = namespace.ok().and_then(|number| u32::try_from(number).ok()) else { continue };
            let is_wanted = self.homes.get(&number).is_none_or(|home| home.others.len() < MAX_RESIDENTS);
            if !is_wanted || netns::is_an_observers_program(pid) {
                continue;
            }
            match self.homes.get_mut(&number) {
                Some(home) => home.others.push(pid),
                None => drop(self.homes.insert(number, Home { pid, others: Vec::new(), addresses: None })),
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

/// Of the network namespace of the calling thread.
fn sockets_of(wanted: &Wanted) -> Vec<u64> {
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
            inodes(tcp(v6), &connected)
        }
        protocol::UDP => {
            let mut rows = table("udp6");
            // A socket of the newer family sends IPv4 too.
            if !v6 {
                rows.extend(table("udp"));
            }
            inodes(rows, &exact)
        }
        protocol::ICMP | protocol::ICMPV6 => {
            // A ping socket has the identifier for a port; a raw socket has its protocol, and sends what it likes.
            let found = inodes(table(if v6 { "icmp6" } else { "icmp" }), &exact);
            if found.is_empty() { raw(wanted) } else { found }
        }
        _ => raw(wanted),
    }
}

fn raw(wanted: &Wanted) -> Vec<u64> {
    let rows = table(if wanted.source.0.is_ipv6() { "raw6" } else { "raw" });
    let fits = |row: &Row| row.inode != 0 && row.local.port() == u16::from(wanted.protocol);
    rows.into_iter().filter(fits).map(|row| row.inode).collect()
}

fn tcp(v6: bool) -> Vec<Row> {
    let read = |name: &str| TcpNetEntries::from_file(path(name), current_system_info()).map(|rows| rows.0);
    // A socket of the newer family may have an IPv4 connection.
    let newer = read("tcp6").unwrap_or_default();
    let older = if v6 { Vec::new() } else { read("tcp").unwrap_or_default() };
    let row =
        |row: procfs::net::TcpNetEntry| Row { local: row.local_address, remote: row.remote_address, inode: row.inode };
    newer.into_iter().chain(older).map(row).collect()
}

/// A table of the calling thread's network namespace.
fn path(name: &str) -> PathBuf {
    Path::new("/proc/thread-self/net").join(name)
}

/// UDP's table; those of ping and raw sockets have the same form.
fn table(name: &str) -> Vec<Row> {
    let Ok(rows) = UdpNetEntries::from_file(path(name), current_system_info()) else { return Vec::new() };
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
