//! Rich rules: which of a policy's file a rule in force was made of, and its words.

use roxmltree::{Document, Node};

use crate::firewall::front_end::{
    Place,
    line::{Does, has_network, has_port, tokens},
};

/// What a service is, by its name.
pub(super) type Services<'a> = &'a dyn Fn(&str) -> Option<Vec<(String, String)>>;

/// The only rich rule of a policy's file that this rule can have been made of.
pub(super) fn rule(xml: &str, place: &Place<'_>, text: &str, services: Services<'_>) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
                nft::{self, RuleVerdict},
            },
            model::{Backend, Entrance, NamedRule},
        };
        let in_force = nft::Rule {
            family: family::INET,
            table: "firewalld".to_owned(),
            chain: "filter_OUT_policy_p_deny".to_owned(),
            handle: 1,
            verdicts: vec![RuleVerdict::Drop],
            packets: None,
        };
        let named = NamedRule {
            backend: Backend::Nft,
            family: "inet".to_owned(),
            table: "firewalld".to_owned(),
            chain: in_force.chain.clone(),
            handle: Some(1),
            position: Some(1),
            text: None,
            path: Vec::new(),
            verdict: None,
            ruleset_sha256: None,
            statement: None,
            translates: None,
            entrance: Entrance::Own,
            packet: None,
            leads_to: None,
            translated: None,
            sees_forwarded: false,
        };
        let place =
            Place { named: &named, base: "filter_OUTPUT", rules: &[&in_force], all: &[], chains: &[], saved: None };
        let services = |name: &str| (name == "http").then(|| vec![("80".to_owned(), "tcp".to_owned())]);
        let told = |xml: &str, text: &str| rule(&format!("<policy>{xml}</policy>"), &place, text, &services);
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
