//! firewalld: policies and zones by the names of its chains, rich rules from its policies' files, direct rules, panic mode.

use roxmltree::{Document, Node};

use super::{Does, Place, has_network, has_port, is_about_the_same, tokens};
use crate::{firewall::files::Root, model::Statement};

const RULESET: &str = "firewalld";
const TABLE: &str = "firewalld";
const PANIC: &str = "firewalld_policy_drop";
/// Where policies and zones are kept; those of the first folder hide those of the second.
const FOLDERS: [&str; 2] = ["/etc/firewalld", "/usr/lib/firewalld"];
const DIRECT: &str = "/etc/firewalld/direct.xml";
/// Endings of the chains of a policy or zone.
const PARTS: [&str; 5] = ["pre", "log", "deny", "allow", "post"];

/// The statement, if the rule is firewalld's.
pub(super) fn statement(place: &Place<'_>, roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
    let named = place.named;
    let whole = |what: String, name: String| Statement {
        ruleset: RULESET.to_owned(),
        what,
        name,
        number: None,
        comment: None,
        note: None,
    };
    match named.table.as_str() {
        PANIC => Some(whole("firewalld's panic mode".to_owned(), "--panic-on".to_owned())),
        TABLE => {
            let text = place.text()?;
            let Some(owner) = Owner::of(&named.chain) else {
                return Some(whole(format!("firewalld's chain {}", named.chain), text));
            };
            let what = format!("firewalld {} {}", owner.kind, owner.name);
            if owner.part.is_none() {
                // What none of its rules decided.
                return Some(whole(what, format!("target {}", target(&text))));
            }
            let read = |root: &Root| {
                FOLDERS
                    .iter()
                    .find_map(|folder| root.read(&format!("{folder}/{}/{}.xml", owner.folder, owner.name)).ok())
            };
            let roots = roots();
            let rich = roots.iter().find_map(|root| rich_rule(&read(root)?, place, &text, &|name| service(root, name)));
            let is_kept = roots.iter().any(|root| read(root).is_some());
            Some(match rich {
                Some(rule) => whole(format!("{what}, rich rule"), rule),
                None if is_kept => Statement { note: Some(NOT_KEPT.to_owned()), ..whole(what, text) },
                None => whole(what, text),
            })
        }
        _ if place.is_iptables() => {
            let rule = roots().iter().find_map(|root| direct_rule(&root.read(DIRECT).ok()?, place))?;
            Some(whole("firewalld's direct rule".to_owned(), rule))
        }
        _ => None,
    }
}

/// A rule whose policy's file has none like it.
const NOT_KEPT: &str =
    "no single rich rule of its file is like it: it may have been made without --permanent, and go at a reload";

/// Ports and protocols of a service, as its file has them.
fn service(root: &Root, name: &str) -> Option<Vec<(String, String)>> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let file = |folder: &&str| root.read(&format!("{folder}/services/{name}.xml")).ok();
    let xml = FOLDERS.iter().filter(|_| plain).find_map(file)?;
    let document = Document::parse(&xml).ok()?;
    let ports = document.root_element().children().filter(|node| node.has_tag_name("port"));
    ports.map(|port| Some((port.attribute("port")?.to_owned(), port.attribute("protocol")?.to_owned()))).collect()
}

/// Whose chain it is.
#[derive(Debug, PartialEq, Eq)]
struct Owner<'a> {
    kind: &'static str,
    folder: &'static str,
    name: &'a str,
    part: Option<&'a str>,
}

impl<'a> Owner<'a> {
    /// `filter_OUT_policy_NAME_deny`, `filter_FWD_ZONE_deny`.
    fn of(chain: &'a str) -> Option<Self> {
        let rest = ["filter_OUT_", "filter_FWD_", "filter_FWDO_", "filter_FWDI_"]
            .iter()
            .find_map(|prefix| chain.strip_prefix(prefix))?;
        let (kind, folder, rest) = match rest.strip_prefix("policy_") {
            Some(rest) => ("policy", "policies", rest),
            None => ("zone", "zones", rest),
        };
        let part = rest.rsplit_once('_').filter(|(_, part)| PARTS.contains(part));
        Some(Self { kind, folder, name: part.map_or(rest, |(name, _)| name), part: part.map(|(_, part)| part) })
    }
}

/// The policy whose chain it is.
pub fn policy(chain: &str) -> Option<&str> {
    Owner::of(chain).filter(|owner| owner.kind == "policy").map(|owner| owner.name)
}

fn target(text: &str) -> &'static str {
    if text.contains("reject") { "REJECT" } else { "DROP" }
}

/// What a service is, by its name.
type Services<'a> = &'a dyn Fn(&str) -> Option<Vec<(String, String)>>;

/// The only rich rule of a policy's file that this rule can have been made of.
fn rich_rule(xml: &str, place: &Place<'_>, text: &str, services: Services<'_>) -> Option<String> {
    let document = Document::parse(xml).ok()?;
    let mut fitting = document.root_element().children().filter(|node| node.has_tag_name("rule")).filter(|rule| {
        let part = |name: &str| rule.children().find(|child| child.has_tag_name(name));
        let does = if part("drop").is_some() {
            Does::Drops
        } else if part("reject").is_some() {
            Does::Rejects
        } else {
            return false;
        };
        let same = place.index().and_then(|index| place.rules.get(index)).is_some_and(|rule| Does::of(rule) == does);
        // Everything that stands in it stands in the rule too, and nothing else does; what a set of addresses is, is not known
        // here. Of a service each port has a rule of its own.
        let words = tokens(text);
        let has = |word: &str| words.contains(&word);
        let ends = [("destination", "daddr"), ("source", "saddr")].iter().all(|(name, word)| {
            match part(name).map(|end| end.attribute("address")) {
                Some(Some(address)) => has(word) && has_network(&words, address),
                Some(None) => false,
                None => !has(word),
            }
        });
        let service = part("service").and_then(|service| service.attribute("name"));
        let of_service = service.map(|name| services(name).unwrap_or_default());
        let ports = [("port", "dport"), ("source-port", "sport")].iter().all(|(name, word)| match part(name) {
            Some(port) => {
                let number = port.attribute("port").is_some_and(|number| has_port(&words, number));
                has(word) && number && port.attribute("protocol").is_some_and(has)
            }
            None if *name == "port" && service.is_some() => {
                of_service.iter().flatten().any(|(port, protocol)| has(word) && has_port(&words, port) && has(protocol))
            }
            None => !has(word),
        });
        let is_plain = !["icmp-block", "icmp-type", "forward-port", "protocol"].iter().any(|name| part(name).is_some());
        let family = match rule.attribute("family") {
            Some("ipv4") => !has("ip6"),
            Some("ipv6") => !has("ip"),
            _ => true,
        };
        same && family && is_plain && ends && ports
    });
    let rule = fitting.next()?;
    fitting.next().is_none().then(|| phrase(rule))
}

/// As `firewall-cmd --list-rich-rules` writes it.
fn phrase(rule: Node<'_, '_>) -> String {
    let mut words = vec!["rule".to_owned()];
    let attributes = |node: Node<'_, '_>, words: &mut Vec<String>| {
        for name in
            ["priority", "family", "name", "address", "ipset", "port", "protocol", "value", "type", "prefix", "level"]
        {
            if let Some(value) = node.attribute(name).filter(|value| name != "priority" || *value != "0") {
                words.push(format!("{name}=\"{value}\""));
            }
        }
    };
    attributes(rule, &mut words);
    let order = [
        "source",
        "destination",
        "service",
        "port",
        "protocol",
        "icmp-type",
        "source-port",
        "log",
        "audit",
        "accept",
        "reject",
        "drop",
        "mark",
    ];
    for name in order {
        for child in rule.children().filter(|child| child.has_tag_name(name)) {
            if child.attribute("invert").is_some_and(|invert| ["yes", "true", "True"].contains(&invert)) {
                words.push(format!("{name} NOT"));
            } else {
                words.push(name.to_owned());
            }
            attributes(child, &mut words);
        }
    }
    words.join(" ")
}

/// The direct rule at the same place of its chain: they stand in front of all others, by priority.
fn direct_rule(xml: &str, place: &Place<'_>) -> Option<String> {
    let document = Document::parse(xml).ok()?;
    let family = if place.named.family == "ip6" { "ipv6" } else { "ipv4" };
    let mut rules: Vec<(i64, String)> = document
        .root_element()
        .children()
        .filter(|node| node.has_tag_name("rule"))
        .filter(|rule| {
            rule.attribute("ipv") == Some(family)
                && rule.attribute("table") == Some(&place.named.table)
                && rule.attribute("chain") == Some(&place.named.chain)
        })
        .map(|rule| {
            let priority = rule.attribute("priority").and_then(|priority| priority.parse().ok()).unwrap_or(0);
            (priority, rule.text().unwrap_or_default().trim().to_owned())
        })
        .collect();
    rules.sort_by_key(|(priority, _)| *priority);
    let same = |((_, text), rule): (&(i64, String), &&super::Rule)| {
        shlex::split(text).is_some_and(|words| Does::of_words(&words) == Does::of(rule))
    };
    let agree = rules.len() <= place.rules.len() && rules.iter().zip(place.rules).all(same);
    let (priority, text) = rules.get(place.index().filter(|_| agree)?)?;
    let words = shlex::split(text)?;
    let shares = place.text().is_some_and(|in_force| is_about_the_same(&words, &in_force));
    shares.then(|| format!("{family} {} {} {priority} {text}", place.named.table, place.named.chain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_a_policys_or_a_zones() {
        let of = |chain| Owner::of(chain).map(|owner| (owner.kind, owner.name, owner.part));
        assert_eq!(of("filter_OUT_policy_block_it_deny"), Some(("policy", "block_it", Some("deny"))));
        assert_eq!(of("filter_OUT_policy_hostout"), Some(("policy", "hostout", None)));
        assert_eq!(of("filter_FWD_public_post"), Some(("zone", "public", Some("post"))));
        assert_eq!(of("filter_OUTPUT"), None);
        assert_eq!(of("filter_IN_public_deny"), None, "nothing of what goes out");
    }

    #[test]
    fn rich_rules_are_worded_as_firewall_cmd_does() {
        let xml = r#"<rule priority="-10" family="ipv6"><destination address="2001:db8:1::/48"/>
            <port port="443" protocol="tcp"/><log prefix="obs " level="info"/><drop/></rule>"#;
        let document = Document::parse(xml).unwrap();
        assert_eq!(
            phrase(document.root_element()),
            r#"rule priority="-10" family="ipv6" destination address="2001:db8:1::/48" port port="443" protocol="tcp" log prefix="obs " level="info" drop"#
        );
        let inverted = Document::parse(r#"<rule family="ipv4"><source address="10.0.0.0/8" invert="True"/><reject type="icmp-host-prohibited"/></rule>"#).unwrap();
        assert_eq!(
            phrase(inverted.root_element()),
            r#"rule family="ipv4" source NOT address="10.0.0.0/8" reject type="icmp-host-prohibited""#
        );
    }

    #[test]
    fn a_rich_rule_is_told_for_no_other() {
        use crate::{
            firewall::{
                netfilter::family,
                nft::{Rule, Verdict},
            },
            model::{Backend, NamedRule},
        };
        let rule = Rule {
            family: family::INET,
            table: TABLE.to_owned(),
            chain: "filter_OUT_policy_p_deny".to_owned(),
            handle: 1,
            verdicts: vec![Verdict::Drop],
            packets: None,
        };
        let named = NamedRule {
            backend: Backend::Nft,
            family: "inet".to_owned(),
            table: TABLE.to_owned(),
            chain: rule.chain.clone(),
            handle: Some(1),
            position: Some(1),
            text: None,
            path: Vec::new(),
            verdict: None,
            ruleset_sha256: None,
            statement: None,
            translates: None,
        };
        let place = Place { named: &named, base: "filter_OUTPUT", rules: &[&rule], all: &[], chains: &[], saved: None };
        let services = |name: &str| (name == "http").then(|| vec![("80".to_owned(), "tcp".to_owned())]);
        let told = |xml: &str, text: &str| rich_rule(&format!("<policy>{xml}</policy>"), &place, text, &services);
        let port = r#"<rule><port port="80" protocol="tcp"/><drop/></rule>"#;
        assert!(told(port, "tcp dport 80 drop").is_some());
        assert_eq!(told(port, "tcp dport 8080 drop"), None);
        assert_eq!(told(port, "ip daddr 203.0.113.9 tcp dport 80 drop"), None);
        let address = r#"<rule family="ipv4"><destination address="203.0.113.9"/><drop/></rule>"#;
        assert!(told(address, "ip daddr 203.0.113.9 drop").is_some());
        assert_eq!(told(address, "ip daddr 203.0.113.9 tcp dport 443 drop"), None);
        assert_eq!(told(address, "ip daddr 203.0.113.90 drop"), None);
        assert_eq!(told(&format!("{port}{port}"), "tcp dport 80 drop"), None, "two may be it");
        let service = r#"<rule><service name="http"/><drop/></rule>"#;
        assert_eq!(told(service, "tcp dport 80 drop").as_deref(), Some(r#"rule service name="http" drop"#));
        assert_eq!(told(service, "udp dport 80 drop"), None);
        assert_eq!(told(&service.replace("http", "unknown"), "tcp dport 80 drop"), None);
    }
}
