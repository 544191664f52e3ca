//! The table of connections: what it has of a packet's own connection, and the same entry in a copy.

use std::{net::IpAddr, path::Path, sync::OnceLock};

use anyhow::{Context, Result, ensure};
use etherparse::IpNumber;

use super::packet::Whole;
use crate::kernel::btf::Btf;
use crate::kernel::netlink::{Attributes, Body, CREATE, Message, Netlink};

/// `NETLINK_NETFILTER`, `NFNL_SUBSYS_CTNETLINK`, and a `struct nfgenmsg`.
const PROTOCOL: isize = 12;
const SUBSYSTEM: u16 = 1;
const FIXED: usize = 4;
/// `IPCTNL_MSG_CT_*`
const NEW: u16 = SUBSYSTEM << 8;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;
/// `CTA_TUPLE_ORIG`, and inside it `CTA_TUPLE_IP` and `CTA_TUPLE_PROTO`
const ORIGINAL: u16 = 1;
const OF_IP: u16 = 1;
const OF_PROTOCOL: u16 = 2;
/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_STATUS`, `CTA_PROTOINFO`, `CTA_TIMEOUT`, `CTA_MARK`, `CTA_LABELS`
const COPIED: [u16; 7] = [1, 2, 3, 4, 7, 8, 22];

/// `CTA_STATUS`, and in it `IPS_SRC_NAT` and `IPS_DST_NAT`
const STATUS: u16 = 3;
const TRANSLATED: u32 = 0x10 | 0x20;

/// What is known of a packet's connection.
#[derive(Clone, Debug)]
pub enum Connection {
    /// Nothing: the kernel cannot be asked.
    Unknown,
    /// It is in no table: the packet begins one.
    New,
    /// Its entry.
    ConntrackEntry(ConntrackEntry),
    /// It has one, and its addresses are translated: that is not copied.
    Translated,
}

/// An entry of the table, as the kernel wrote it.
#[derive(Clone, Debug)]
pub struct ConntrackEntry(Body);

/// The kernel can be asked without loading anything into it.
pub(super) fn is_there() -> bool {
    static BUILT_IN: OnceLock<bool> = OnceLock::new();
    Path::new("/sys/module/nf_conntrack_netlink").exists()
        || *BUILT_IN.get_or_init(|| Btf::of_kernel().is_ok_and(|btf| btf.has_struct("ctnetlink_filter")))
}

/// Asks the namespace of the calling thread.
pub(super) fn of(whole: &Whole) -> Connection {
    let asked = is_there().then(|| ask(whole));
    match asked {
        // An entry cannot be given its translation once it is there.
        Some(Ok(Some(entry))) if entry.attributes.number(STATUS).is_none_or(|status| status & TRANSLATED != 0) => {
            Connection::Translated
        }
        Some(Ok(Some(entry))) => Connection::ConntrackEntry(ConntrackEntry(entry)),
        Some(Ok(None)) => Connection::New,
        Some(Err(error)) => {
            log::debug!("the table of connections was not read: {error:#}");
            Connection::Unknown
        }
        None => Connection::Unknown,
    }
}

fn ask(whole: &Whole) -> Result<Option<Body>> {
    let question = question(whole).context("connections of that kind are not known")?;
    Netlink::open(PROTOCOL, FIXED)?.get(GET, &question)
}

/// Names the packet's connection.
fn question(whole: &Whole) -> Option<Body> {
    let mut body = Body::new(&[whole.family(), 0, 0, 0]);
    body.attributes.set_list(ORIGINAL, &tuple(whole)?);
    Some(body)
}

/// `CTA_TUPLE_*`
fn tuple(whole: &Whole) -> Option<Attributes> {
    let (mut addresses, mut protocol, mut tuple) =
        (Attributes::default(), Attributes::default(), Attributes::default());
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let first = if whole.destination.is_ipv4() { 1 } else { 3 };
    addresses.set(first, bytes(whole.source));
    addresses.set(first + 1, bytes(whole.destination));
    protocol.set(1, vec![whole.protocol]);
    let head = whole.transport().get(..8)?;
    match IpNumber(whole.protocol) {
        // What it has in their place is no port.
        IpNumber::GRE => return None,
        // Identifier, type and code, in the family's own attributes.
        IpNumber::ICMP | IpNumber::IPV6_ICMP => {
            let first = if IpNumber(whole.protocol) == IpNumber::ICMP { 4 } else { 7 };
            protocol.set(first, head[4..6].to_vec());
            protocol.set(first + 1, vec![head[0]]);
            protocol.set(first + 2, vec![head[1]]);
        }
        _ => {
            protocol.set(2, head[..2].to_vec());
            protocol.set(3, head[2..4].to_vec());
        }
    }
    tuple.set_list(OF_IP, &addresses);
    tuple.set_list(OF_PROTOCOL, &protocol);
    Some(tuple)
}

/// Has the calling thread's namespace know of the packet's connection what there is to be known, whatever it knew before.
pub(super) fn enter(whole: &Whole, connection: &Connection) -> Result<()> {
    // Where the kernel cannot be asked without loading something, a new one is new: nothing was sent in the copy before.
    if matches!(connection, Connection::Unknown) || matches!(connection, Connection::New) && !is_there() {
        return Ok(());
    }
    ensure!(!matches!(connection, Connection::Translated), "the addresses of the packet's connection are translated");
    let mut netlink = Netlink::open(PROTOCOL, FIXED)?;
    let own = question(whole).context("connections of that kind are not known")?;
    // It may have none.
    netlink.each([Message { kind: DELETE, flags: 0, body: &own }])?;
    if let Connection::ConntrackEntry(ConntrackEntry(entry)) = connection {
        let body = entry.with(entry.attributes.only(&COPIED));
        let refused = netlink.each([Message { kind: NEW, flags: CREATE, body: &body }])?;
        ensure!(refused.is_empty(), "the packet's connection could not be copied");
    }
    Ok(())
}
