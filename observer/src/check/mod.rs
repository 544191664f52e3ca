//! What is asked before anything is installed: destinations as they are typed ([`ask`]), and what agents need ([`profiles`]), what the host
//! depends on already ([`host`]), and who would send ([`unit`]), and
//! through which proxies ([`proxy`]); and what becomes of a real connection ([`live`]).

pub mod ask;
pub mod hints;
pub mod host;
pub mod live;
pub mod profiles;
pub mod proxy;
pub mod resolve;
pub mod services;
pub mod unit;

use std::{collections::BTreeMap, net::IpAddr};

/// A destination that is to be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Host name, address or network, as it is reported.
    pub host: String,
    /// What is looked up, where that is another name: nobody can look up a wildcard.
    pub probe: Option<String>,
    /// `tcp` or `udp`.
    pub transport: &'static str,
    /// Destination port.
    pub port: u16,
    /// It is a proxy, which is not what the other end of a connection is.
    pub is_proxy: bool,
    /// Of which profile it is.
    pub profile: Option<OfProfile>,
}

/// What a profile says of a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfProfile {
    /// Name of the profile.
    pub name: String,
    /// `install` or `run`.
    pub phase: String,
    /// What it is for.
    pub purpose: String,
    /// Without it the agent does not work.
    pub is_required: bool,
}

/// How the addresses of a destination are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// They were given.
    Given,
    /// The host's resolver told them.
    Resolved,
    /// They are not: one of each family stands for any. And why.
    Any(String),
}

/// A destination with its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What was asked.
    pub entry: Entry,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// How they are known.
    pub known: Known,
}

/// Names and values: `site=us3.datadoghq.com`.
pub type Values = BTreeMap<String, String>;

/// Addresses that stand for any: public ones, of which no list of special networks has anything. Nothing is sent to them.
pub const ANY: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(193, 0, 0, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0x67c, 0, 0, 0, 0, 0, 1)),
];
