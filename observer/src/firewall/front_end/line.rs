//! A line of a file in iptables' syntax beside the rule in force that may have been made of it.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::firewall::nft::{Rule, RuleVerdict};

/// What a rule does, as far as its line in a file of iptables' says it too.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Does<'a> {
    Drops,
    Rejects,
    Leads(&'a str),
    /// Accepts, returns, marks, logs.
    Else,
}

impl<'a> Does<'a> {
    pub(super) fn of(rule: &'a Rule) -> Self {
        rule.verdicts.first().map_or(Self::Else, |verdict| match verdict {
            RuleVerdict::Drop => Self::Drops,
            RuleVerdict::Reject => Self::Rejects,
            RuleVerdict::Chain(chain) => Self::Leads(chain),
            RuleVerdict::Map | RuleVerdict::Translate(_) => Self::Else,
        })
    }

    pub(super) fn of_words(words: &'a [String]) -> Self {
        let target =
            words.windows(2).find(|pair| ["-j", "-g"].contains(&pair[0].as_str())).map(|pair| pair[1].as_str());
        match target {
            Some("DROP") => Self::Drops,
            Some("REJECT") => Self::Rejects,
            // iptables' own are in capitals.
            Some(target) if target.bytes().any(|byte| byte.is_ascii_lowercase()) => Self::Leads(target),
            _ => Self::Else,
        }
    }
}

/// What stands behind an option in a rule's text.
pub(super) fn value<'a>(text: &'a str, option: &str) -> Option<&'a str> {
    let mut words = text.split(' ').skip_while(|word| *word != option);
    words.nth(1)
}

/// The comments in a rule's text, by iptables or nft; a rule may have several.
pub(super) fn comments(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split("comment \"").skip(1).filter_map(|rest| rest.split('"').next());
    let bare = text.split("--comment ").skip(1).filter(|rest| !rest.starts_with('"'));
    quoted.chain(bare.filter_map(|rest| rest.split(' ').next()))
}

/// Whether a line of iptables' and the text of the rule that was made of it, by `nft` or `iptables-save`, are about the same
/// addresses, ports, interfaces and protocol.
pub(super) fn is_about_the_same(words: &[String], text: &str) -> bool {
    let tokens = tokens(text);
    words.windows(2).all(|pair| {
        let (option, value) = (pair[0].as_str(), pair[1].as_str());
        match option {
            "-d" | "-s" | "--destination" | "--source" => has_network(&tokens, value),
            "--dport" | "--sport" | "--dports" | "--sports" | "--ports" | "--destination-port" | "--source-port" => {
                value.split(',').all(|port| has_port(&tokens, port))
            }
            "-o" | "-i" | "--out-interface" | "--in-interface" => {
                let name = value.replace('+', "*");
                tokens.iter().any(|token| *token == value || *token == name)
            }
            "-p" | "--protocol" => {
                let names: &[&str] = match value {
                    "icmp" | "1" => &["icmp", "1"],
                    "ipv6-icmp" | "icmpv6" | "58" => &["ipv6-icmp", "icmpv6", "58"],
                    other => &[other],
                };
                value == "all" || tokens.iter().any(|token| names.contains(token))
            }
            _ => true,
        }
    })
}

/// The words of a rule's text, without brackets, quotes and commas.
pub(super) fn tokens(text: &str) -> Vec<&str> {
    text.split(|letter: char| letter.is_whitespace() || "{}\",'".contains(letter))
        .filter(|token| !token.is_empty())
        .collect()
}

/// An address or network, however it is written.
pub(super) fn has_network(tokens: &[&str], value: &str) -> bool {
    let network = |text: &str| -> Option<IpNet> {
        text.parse().ok().map(|network: IpNet| network.trunc()).or_else(|| Some(text.parse::<IpAddr>().ok()?.into()))
    };
    match network(value) {
        Some(wanted) => tokens.iter().any(|token| network(token) == Some(wanted)),
        None => tokens.contains(&value),
    }
}

/// A port or a range of them: `1000:1010` is `1000-1010` to nft.
pub(super) fn has_port(tokens: &[&str], value: &str) -> bool {
    let range = value.replace(':', "-");
    tokens.iter().any(|token| *token == value || *token == range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_and_its_rule_are_about_the_same() {
        let same = |line: &str, text: &str| is_about_the_same(&shlex::split(line).unwrap(), text);
        for (line, text) in [
            ("-p tcp --dport 443 -j DROP", "tcp dport 443 counter drop"),
            ("-p tcp -d 203.0.113.0/24 --dport 80 -j REJECT", "ip daddr 203.0.113.0/24 tcp dport 80 counter reject"),
            ("-d 2001:DB8:0::10 -j DROP", "ip6 daddr 2001:db8::10 counter drop"),
            ("-d 203.0.113.9 -j DROP", "-d 203.0.113.9/32 -j DROP"),
            (
                "-p udp -m multiport --dports 1000:1010,2000 -j DROP",
                "meta l4proto udp udp dport { 1000-1010, 2000 } drop",
            ),
            ("-o eth0 -p tcp --dport 25 -j DROP", "oifname \"eth0\" tcp dport 25 counter drop"),
            ("-i eth+ -j DROP", "iifname \"eth*\" counter drop"),
            ("-p icmp -j DROP", "meta l4proto icmp counter drop"),
        ] {
            assert!(same(line, text), "{line}: {text}");
        }
        for (line, text) in [
            ("-p tcp --dport 80 -j DROP", "tcp dport 8080 counter drop"),
            ("-p udp --dport 443 -j DROP", "tcp dport 443 counter drop"),
            ("-d 10.0.0.0/8 -j DROP", "ip daddr 192.168.0.0/16 counter drop"),
            ("-d 10.0.0.0/8 -j DROP", "ip daddr 10.0.0.0/16 counter drop"),
            ("-d 2001:db8::1 -j DROP", "ip6 daddr 2001:db8::10 counter drop"),
            ("-o eth0 -j DROP", "oifname \"eth1\" counter drop"),
            ("-p udp -m multiport --dports 1000:1010 -j DROP", "udp dport 1000-1020 drop"),
        ] {
            assert!(!same(line, text), "{line}: {text}");
        }
    }
}
