//! What was tried and did not get out: by whom, where to, and what stopped it.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    background::Background,
    decider::Decider,
    dropped::transport_name,
    names::{Cause, Family, Hook},
    packet_kind::PacketKind,
    rule::{EgressRule, RuleName, Verdict},
    sender::Sender,
};

/// One end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct End {
    /// Address.
    pub ip: IpAddr,
    /// Port; `None` where there is none, or several packets stand together.
    pub port: Option<u16>,
    /// Address and port in the packet, where they were translated.
    pub nat: Option<(IpAddr, Option<u16>)>,
}

/// Packets of one sender to one destination that one decision stopped, or a connection that hangs. What is not known is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Attempt {
    /// Stable id of the cause that is reported as one story.
    #[cfg_attr(test, proptest(strategy = "super::arbitrary::uuid()"))]
    pub incident: Uuid,
    /// Who sent it.
    pub sender: Sender,
    /// The first packet.
    #[cfg_attr(test, proptest(strategy = "super::arbitrary::time()"))]
    pub start: Timestamp,
    /// The last one.
    #[cfg_attr(test, proptest(strategy = "super::arbitrary::time()"))]
    pub end: Timestamp,
    /// Packets that this line adds.
    pub packets: u64,
    /// Bytes that this line adds.
    pub bytes: u64,
    /// Of which kind they are.
    pub family: Option<Family>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Where from.
    pub source: Option<End>,
    /// Where to.
    pub destination: Option<End>,
    /// Which kind of decision; `None` of a connection that hangs where that is not known.
    pub cause: Option<Cause>,
    /// What the decision did with them.
    pub verdict: Option<Verdict>,
    /// What decided where no rule did, or none that is known.
    pub decided_by: Option<Decider>,
    /// The rule or policy.
    pub rule: Option<EgressRule>,
    /// What the rule is known by.
    pub rule_name: Option<RuleName>,
    /// What was found, in a sentence.
    pub finding: Option<String>,
    /// The running kernel's own name for the reason.
    pub drop_reason: Option<String>,
    /// Where on the way out.
    pub hook: Option<Hook>,
    /// Outgoing interface.
    pub interface: Option<String>,
    /// No packet of its connection has left this host so far: every one was seen to be dropped. False where that is not proven.
    pub nothing_left: bool,
    /// Which packet of the conversation was stopped, where it is not its own outbound one.
    pub packet: Option<PacketKind>,
    /// Which kind of background it is.
    pub background: Option<Background>,
    /// The packet carries another one, which the sender sent: `destination` is a tunnel's other end.
    pub encapsulated: bool,
    /// Packets to several destinations stand together: there was no room to count them one by one.
    pub coarse: bool,
    /// Inode number of the network namespace whose rules decided.
    pub netns: Option<u32>,
    /// Words that go before a command so that it is run in that namespace, where it is not observer's own.
    pub entering: Option<String>,
    /// That namespace is not observer's own, whether or not it is known how to enter it.
    pub is_elsewhere: bool,
    /// Inode number of the network namespace that they came from, where another one forwarded them.
    pub origin_netns: Option<u32>,
    /// Inode number of the socket file, with which `ss` and /proc/PID/fd name it.
    pub socket_inode: Option<u64>,
    /// Of a connection that hangs: how long.
    pub wait: Option<Wait>,
    /// What `observer check` is asked for to find everything else that the sender will need.
    pub profiles: Vec<String>,
}

/// A connection that waits for its first answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(proptest_derive::Arbitrary))]
pub struct Wait {
    /// SYNs that were sent.
    pub attempts: u32,
    /// Milliseconds that it has waited.
    pub waited_ms: u64,
    /// Milliseconds after which TCP gives up at the latest; the application may before.
    pub gives_up_ms: Option<u64>,
    /// Its last packet left the network stack of its namespace; `None` before anything was sent again.
    pub left: Option<bool>,
}

impl Attempt {
    /// ECS name of its protocol, or its number.
    pub fn transport(&self) -> Option<String> {
        self.protocol.map(transport_name)
    }

    /// `203.0.113.10:443/tcp`, `[2001:db8::1]:53/udp`, `10.0.0.1 icmp`.
    pub fn to(&self) -> String {
        match (&self.destination, self.transport()) {
            (Some(End { ip, port: Some(port), .. }), Some(transport)) => {
                format!("{}/{transport}", SocketAddr::new(*ip, *port))
            }
            (Some(End { ip, .. }), Some(transport)) if transport.starts_with(|first: char| first.is_ascii_digit()) => {
                format!("{ip} protocol {transport}")
            }
            (Some(End { ip, .. }), Some(transport)) => format!("{ip} {transport}"),
            (Some(End { ip, .. }), None) => ip.to_string(),
            (None, _) => self.family.map_or("an unknown destination", Family::name).to_owned(),
        }
    }

    /// The same of no packet: news of what was reported.
    pub fn without_packets(mut self) -> Self {
        (self.packets, self.bytes) = (0, 0);
        self
    }
}

#[cfg(test)]
impl Attempt {
    /// A SYN of curl's to port 443, which a rule at the output hook dropped at the epoch.
    pub(crate) fn example() -> Self {
        let end = |ip: [u8; 4], port| Some(End { ip: IpAddr::from(ip), port: Some(port), nat: None });
        Self {
            incident: Uuid::from_u128(1),
            sender: Sender::example("/usr/bin/curl", 7),
            start: Timestamp::UNIX_EPOCH,
            end: Timestamp::UNIX_EPOCH,
            packets: 1,
            bytes: 60,
            family: Some(Family::Ipv4),
            protocol: Some(6),
            source: end([10, 0, 0, 1], 40_000),
            destination: end([203, 0, 113, 10], 443),
            cause: Some(Cause::Netfilter),
            verdict: None,
            decided_by: None,
            rule: None,
            rule_name: None,
            finding: Some("a rule dropped it".to_owned()),
            drop_reason: None,
            hook: Some(Hook::Output),
            interface: None,
            nothing_left: false,
            packet: None,
            background: None,
            encapsulated: false,
            coarse: false,
            netns: Some(1),
            entering: None,
            is_elsewhere: false,
            origin_netns: None,
            socket_inode: None,
            wait: None,
            profiles: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_in_words() {
        let mut attempt = Attempt::example();
        assert_eq!(attempt.to(), "203.0.113.10:443/tcp");
        attempt.destination = Some(End { ip: "2001:db8::1".parse().unwrap(), port: Some(53), nat: None });
        assert_eq!(attempt.to(), "[2001:db8::1]:53/tcp");
        attempt.destination = attempt.destination.map(|end| End { port: None, ..end });
        attempt.protocol = Some(58);
        assert_eq!(attempt.to(), "2001:db8::1 ipv6-icmp");
        attempt.protocol = Some(47);
        assert_eq!(attempt.to(), "2001:db8::1 protocol 47");
        attempt.destination = None;
        attempt.family = Some(Family::Arp);
        assert_eq!(attempt.to(), "arp");
    }
}
