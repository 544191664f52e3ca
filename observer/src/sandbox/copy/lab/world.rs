//! What is behind an interface of a copy: a namespace that has the addresses of whoever is there. It answers who asks for them, and
//! is where the other end of a conversation lives.

use std::{
    cell::RefCell,
    collections::HashSet,
    fs::File,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};

use crate::kernel::netlink::{Body, CREATE, Message, Netlink};
use crate::sandbox::copy::surroundings::{PROTOCOL, address_of, arrived, far_address_of, peer_name, peer_of, set};

/// `RTM_NEW…`, and how long what comes before their attributes is.
const NEW_LINK: (u16, usize) = (16, 16);
const NEW_ADDRESS: (u16, usize) = (20, 8);
const NEW_ROUTE: (u16, usize) = (24, 12);
const NEW_NEIGHBOUR: (u16, usize) = (28, 12);
/// `RTM_DELNEIGH`
const OLD_NEIGHBOUR: (u16, usize) = (29, 12);
/// `IFF_UP` and `IFF_NOARP`
const UP: u32 = 1;
const UNASKED: u32 = 0x80;
/// `IFA_F_NODAD`, in eight bits.
const NO_DETECTION: u8 = 2;
/// `NLM_F_REPLACE`
const REPLACE: u16 = 0x100;
/// `NUD_PERMANENT`
const PERMANENT: u16 = 0x80;
/// `IFLA_MTU`
const MTU: u16 = 4;
/// What others have most often: a path that takes less is not known to them.
const USUAL_MTU: u32 = 1500;
const LOOPBACK: u32 = 1;

/// Nothing there decides: it takes what comes, from wherever, and answers for every address that it has.
const SETTINGS: [(&str, &str); 16] = [
    ("ipv4/conf/all/accept_local", "1"),
    ("ipv4/conf/default/accept_local", "1"),
    ("ipv4/ip_forward", "0"),
    ("ipv6/conf/all/forwarding", "0"),
    ("ipv4/conf/all/proxy_arp", "0"),
    ("ipv4/conf/default/proxy_arp", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/arp_ignore", "0"),
    ("ipv4/conf/default/arp_ignore", "0"),
    ("ipv4/conf/all/arp_filter", "0"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv4/tcp_fin_timeout", "1"),
];

/// A namespace behind interfaces.
pub(in crate::sandbox::copy) struct World {
    namespace: File,
    /// The copy.
    home: File,
    /// Addresses that it has by now, by the interface's number.
    addresses: RefCell<HashSet<(u32, IpAddr)>>,
    /// Nothing of it is observed as long as this lives.
    _hidden: Box<dyn Send>,
}

fn own() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("cannot open the thread's network namespace")
}

impl World {
    /// Makes one; the calling thread, which lives in the copy, is there again afterwards.
    pub(in crate::sandbox::copy) fn make(hide: &dyn Fn(u32) -> Result<Box<dyn Send>>) -> Result<Self> {
        let home = own()?;
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        let made = || -> Result<(File, Box<dyn Send>)> {
            let namespace = own()?;
            let number = std::os::unix::fs::MetadataExt::ino(&namespace.metadata()?);
            let hidden = hide(u32::try_from(number)?)?;
            for (place, value) in SETTINGS {
                set(place, value)?;
            }
            ask(NEW_LINK, 0, &link(LOOPBACK, UP, None))?;
            Ok((namespace, hidden))
        };
        let made = made();
        setns(&home, CloneFlags::CLONE_NEWNET).context("cannot return to the copy")?;
        let (namespace, hidden) = made?;
        Ok(Self { namespace, home, addresses: RefCell::default(), _hidden: hidden })
    }

    pub(in crate::sandbox::copy) fn descriptor(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Does something there, in the calling thread, which lives in the copy.
    pub(in crate::sandbox::copy) fn inside<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
        let done = work();
        // Whatever came of it: everything else is done in the copy.
        setns(&self.home, CloneFlags::CLONE_NEWNET).context("cannot return to the copy")?;
        done
    }

    /// Raises the other end of an interface, by which everything is reached from here.
    pub(in crate::sandbox::copy) fn raise(&self, index: u32, is_unasked: bool, mtu: Option<u32>) -> Result<()> {
        self.inside(|| {
            let flags = UP | if is_unasked { UNASKED } else { 0 };
            ask(NEW_LINK, 0, &link(peer_of(index), flags, Some(mtu.unwrap_or(0).max(USUAL_MTU))))?;
            for family in [libc::AF_INET, libc::AF_INET6] {
                ask(NEW_ROUTE, CREATE, &default_route(family as u8, index))?;
            }
            Ok(())
        })
    }

    /// Gives it an address behind an interface.
    pub(in crate::sandbox::copy) fn take(&self, index: u32, address: IpAddr) -> Result<()> {
        if self.addresses.borrow().contains(&(index, address)) {
            return Ok(());
        }
        let (family, length, bytes) = parts(address);
        let mut body = Body::new(&[family, length, NO_DETECTION, 0, 0, 0, 0, 0]);
        body.fixed[4..8].copy_from_slice(&peer_of(index).to_ne_bytes());
        body.attributes.set(1, bytes.clone());
        body.attributes.set(2, bytes);
        let given = || {
            ask(NEW_ADDRESS, CREATE, &body)?;
            arrived(address, peer_of(index))
        };
        self.inside(given).with_context(|| format!("the copy cannot have {address}"))?;
        self.addresses.borrow_mut().insert((index, address));
        Ok(())
    }

    /// Tells it that an address is reached by the copy's own interface: what is beyond the copy does not answer here.
    pub(in crate::sandbox::copy) fn leads(&self, index: u32, address: IpAddr) -> Result<()> {
        let body = neighbour((peer_of(index), address), Some(address_of(index)));
        // It may have been asked for in vain already.
        self.inside(|| ask(NEW_NEIGHBOUR, CREATE | REPLACE, &body)).context("the copy cannot be reached")
    }

    /// Name of the other end of an interface.
    pub(in crate::sandbox::copy) fn name(index: u32) -> String {
        peer_name(index)
    }
}

/// The copy itself, in which the calling thread lives, does not know a neighbour any more.
pub(super) fn forget(index: u32, address: IpAddr) -> Result<()> {
    ask(OLD_NEIGHBOUR, 0, &neighbour((index, address), None)).context("the copy cannot forget a neighbour")
}

/// It knows it for good.
pub(super) fn know(index: u32, address: IpAddr) -> Result<()> {
    let body = neighbour((index, address), Some(far_address_of(index)));
    ask(NEW_NEIGHBOUR, CREATE | REPLACE, &body).context("the copy cannot know a neighbour")
}

/// One behind an interface, with its address on the link.
fn neighbour((index, address): (u32, IpAddr), on_link: Option<[u8; 6]>) -> Body {
    let (family, _, bytes) = parts(address);
    let mut body = Body::new(&[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    body.fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    body.attributes.set(1, bytes);
    if let Some(on_link) = on_link {
        body.fixed[8..10].copy_from_slice(&PERMANENT.to_ne_bytes());
        body.attributes.set(2, on_link.to_vec());
    }
    body
}

/// An address's family, length in bits, and bytes.
fn parts(address: IpAddr) -> (u8, u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (libc::AF_INET as u8, 32, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6 as u8, 128, address.octets().to_vec()),
    }
}

/// Has the kernel do something in the namespace of the calling thread; what is there already is no error.
fn ask((kind, fixed): (u16, usize), flags: u16, body: &Body) -> Result<()> {
    let refused = Netlink::open(PROTOCOL, fixed)?.each([Message { kind, flags, body }])?;
    match refused.first() {
        Some((_, number)) if *number != libc::EEXIST => Err(std::io::Error::from_raw_os_error(*number).into()),
        _ => Ok(()),
    }
}

fn link(index: u32, flags: u32, mtu: Option<u32>) -> Body {
    let mut body = Body::new(&[0; NEW_LINK.1]);
    body.fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    body.fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    body.fixed[12..16].copy_from_slice(&flags.to_ne_bytes());
    if let Some(mtu) = mtu {
        body.attributes.set(MTU, mtu.to_ne_bytes().to_vec());
    }
    body
}

/// Everything is on the other end's link.
fn default_route(family: u8, index: u32) -> Body {
    /// `RT_TABLE_MAIN`, `RTPROT_STATIC`, `RT_SCOPE_LINK`, `RTN_UNICAST`
    const MAIN: u8 = 254;
    const STATIC: u8 = 4;
    const ON_LINK: u8 = 253;
    const UNICAST: u8 = 1;
    let mut body = Body::new(&[family, 0, 0, 0, MAIN, STATIC, ON_LINK, UNICAST, 0, 0, 0, 0]);
    body.attributes.set(4, peer_of(index).to_ne_bytes().to_vec());
    // Several interfaces of one namespace have a route each.
    body.attributes.set(6, index.to_ne_bytes().to_vec());
    body
}
