//! What in a namespace's rules can stop what goes out: policies, and rules that drop or reject, as far as the chains on
//! the way out lead to them. Which packets a rule matches is not looked at.

use std::{
    collections::HashMap,
    io::Read,
    process::{Command, Stdio},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{
    inventory::{legacy_tables, nftables_in_use},
    netfilter::{DROP, family, hook},
    nft::{self, Chain, Rule, Verdict},
};

/// How many are told one by one.
const MAX_TOLD: usize = 16;
/// Time for all texts together.
const PATIENCE: Duration = Duration::from_millis(500);

/// One thing that can stop a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deny {
    /// `ip filter ufw-user-output`: family, table and chain.
    pub place: String,
    /// `output`, `postrouting` or `egress`.
    pub hook: String,
    /// The rule's handle; `None` for the chain's policy.
    pub handle: Option<u64>,
    /// Family of its table, as `nft` writes it.
    pub family: String,
    /// `drop` or `reject`.
    pub verdict: String,
    /// The rule as `nft` writes it; `None` where it cannot be asked.
    pub text: Option<String>,
    /// Packets that its counter counted; `None` without one.
    pub packets: Option<u64>,
}

/// All of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denies {
    /// Policies, then the rules with most packets.
    pub denies: Vec<Deny>,
    /// How many there are.
    pub total: usize,
    /// Rules with a verdict map, which may deny too.
    pub maps: usize,
    /// iptables-legacy has tables, which are not looked into.
    pub legacy: bool,
}

/// Reads the namespace of the calling thread.
pub fn read() -> Result<Denies> {
    let mut denies = if nftables_in_use() { walk(&nft::chains()?, &nft::rules()?) } else { Denies::default() };
    denies.legacy = !legacy_tables().is_empty();
    denies.total = denies.denies.len();
    denies.denies.sort_by_key(|deny| (deny.handle.is_some(), std::cmp::Reverse(deny.packets)));
    denies.denies.truncate(MAX_TOLD);
    let deadline = Instant::now() + PATIENCE;
    let mut listings: HashMap<String, String> = HashMap::new();
    for deny in &mut denies.denies {
        let Some(handle) = deny.handle else { continue };
        let listing = listings.entry(deny.place.clone()).or_insert_with(|| listing(&deny.place, deadline));
        deny.text = text(listing, handle);
    }
    Ok(denies)
}

/// From every chain on the way out along jumps. Pure.
fn walk(chains: &[Chain], rules: &[Rule]) -> Denies {
    let mut found = Denies::default();
    for base in chains {
        let Some(hook) = base.hook.and_then(|hook| way_out(base.family, hook)) else { continue };
        let mut waiting = vec![base.name.as_str()];
        let mut seen = waiting.clone();
        while let Some(chain) = waiting.pop() {
            let here = rules
                .iter()
                .filter(|rule| rule.family == base.family && rule.table == base.table && rule.chain == chain);
            for rule in here {
                for verdict in &rule.verdicts {
                    match verdict {
                        Verdict::Drop | Verdict::Reject => found.denies.push(Deny {
                            place: place(base.family, &base.table, chain),
                            hook: hook.to_owned(),
                            handle: Some(rule.handle),
                            family: family::name(base.family).to_owned(),
                            verdict: if *verdict == Verdict::Drop { "drop" } else { "reject" }.to_owned(),
                            text: None,
                            packets: rule.packets,
                        }),
                        Verdict::Chain(to) => {
                            if !seen.contains(&to.as_str()) {
                                seen.push(to);
                                waiting.push(to);
                            }
                        }
                        Verdict::Map => found.maps += 1,
                    }
                }
            }
        }
        if base.policy == Some(DROP) {
            found.denies.push(Deny {
                place: place(base.family, &base.table, &base.name),
                hook: hook.to_owned(),
                handle: None,
                family: family::name(base.family).to_owned(),
                verdict: "drop".to_owned(),
                text: None,
                packets: None,
            });
        }
    }
    found
}

fn way_out(family: u8, hook: u32) -> Option<&'static str> {
    match (family, hook) {
        (family::INET | family::IPV4 | family::IPV6, hook::LOCAL_OUT) => Some("output"),
        (family::INET | family::IPV4 | family::IPV6, hook::POST_ROUTING) => Some("postrouting"),
        (family::NETDEV, hook::NETDEV_EGRESS) => Some("egress"),
        _ => None,
    }
}

fn place(family: u8, table: &str, chain: &str) -> String {
    format!("{} {table} {chain}", family::name(family))
}

/// What `nft` writes for a chain, if it is installed and answers in time; else nothing.
///
/// `nft` reads its arguments as one command, and the kernel takes any name: only plain ones are asked for.
fn listing(place: &str, deadline: Instant) -> String {
    let plain = |part: &str| {
        !part.starts_with('-')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/'))
    };
    if place.split(' ').count() != 3 || !place.split(' ').all(plain) {
        return String::new();
    }
    let child = Command::new("nft")
        .args(["--handle", "--stateless", "--numeric", "list", "chain"])
        .args(place.split(' '))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return String::new() };
    let (send, receive) = channel();
    if let Some(mut stdout) = child.stdout.take() {
        thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stdout.read_to_end(&mut text);
            let _ = send.send(text);
        });
    }
    let text = receive.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap_or_default();
    let _ = child.kill();
    let _ = child.wait();
    String::from_utf8_lossy(&text).into_owned()
}

/// The rule with this handle in a listing.
fn text(listing: &str, handle: u64) -> Option<String> {
    let mark = format!(" # handle {handle}");
    listing.lines().find_map(|line| line.strip_suffix(&mark)).map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(name: &str, hook: Option<u32>, policy: Option<u32>) -> Chain {
        Chain { family: family::IPV4, table: "filter".to_owned(), name: name.to_owned(), handle: 1, hook, policy }
    }

    fn rule(chain: &str, handle: u64, verdict: Verdict) -> Rule {
        Rule {
            family: family::IPV4,
            table: "filter".to_owned(),
            chain: chain.to_owned(),
            handle,
            verdicts: vec![verdict],
            packets: None,
        }
    }

    #[test]
    fn names_are_no_commands() {
        let later = || Instant::now() + Duration::from_secs(5);
        for place in ["ip filter x;flush ruleset", "ip filter -f", "ip fil ter x", "ip filter x;y"] {
            assert_eq!(listing(place, later()), "", "{place}");
        }
    }

    #[test]
    fn only_what_the_way_out_leads_to() {
        let chains = [
            chain("INPUT", Some(1), Some(DROP)),
            chain("OUTPUT", Some(hook::LOCAL_OUT), Some(DROP)),
            chain("user", None, None),
            chain("lonely", None, None),
        ];
        let rules = [
            rule("INPUT", 1, Verdict::Drop),
            rule("OUTPUT", 2, Verdict::Chain("user".to_owned())),
            rule("OUTPUT", 3, Verdict::Map),
            rule("user", 4, Verdict::Reject),
            rule("user", 5, Verdict::Chain("OUTPUT".to_owned())),
            rule("lonely", 6, Verdict::Drop),
        ];
        let found = walk(&chains, &rules);
        let told: Vec<_> = found.denies.iter().map(|deny| (deny.handle, deny.verdict.as_str())).collect();
        assert_eq!(told, [(Some(4), "reject"), (None, "drop")]);
        assert_eq!((found.maps, found.denies[0].place.as_str()), (1, "ip filter user"));
    }
}
