//! firewalld's words: policies and zones by the names of its chains, rich rules from its policies' files, direct rules, panic mode.

use roxmltree::Document;

use super::{
    NAME, PANIC_ON,
    files::{DIRECT, FOLDERS},
    recognise::{PANIC_TABLE, TABLE},
    rich,
};
use crate::{
    firewall::{
        files::Root,
        front_end::{
            Place,
            line::{Does, is_about_the_same},
            words::plain,
        },
        nft::Rule,
    },
    model::Statement,
};

/// Endings of the chains of a policy or zone.
const PARTS: [&str; 5] = ["pre", "log", "deny", "allow", "post"];

/// The statement, if the rule is firewalld's.
pub(super) fn statement(place: &Place<'_>, roots: &mut dyn FnMut() -> Vec<Root>) -> Option<Statement> {
    let named = place.named;
    let whole = |what: String, name: String| plain(NAME, what, name);
    match named.table.as_str() {
        PANIC_TABLE => Some(whole("firewalld's panic mode".to_owned(), PANIC_ON.to_owned())),
        TABLE => {
            let text = place.text()?;
            let Some(owner) = RuleOwner::of(&named.chain) else {
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
            let rich =
                roots.iter().find_map(|root| rich::rule(&read(root)?, place, &text, &|name| service(root, name)));
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
struct RuleOwner<'a> {
    kind: &'static str,
    folder: &'static str,
    name: &'a str,
    part: Option<&'a str>,
}

impl<'a> RuleOwner<'a> {
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
pub(super) fn policy(chain: &str) -> Option<&str> {
    RuleOwner::of(chain).filter(|owner| owner.kind == "policy").map(|owner| owner.name)
}

fn target(text: &str) -> &'static str {
    if text.contains("reject") { "REJECT" } else { "DROP" }
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
    let same = |((_, text), rule): (&(i64, String), &&Rule)| {
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
        let of = |chain| RuleOwner::of(chain).map(|owner| (owner.kind, owner.name, owner.part));
        assert_eq!(of("filter_OUT_policy_block_it_deny"), Some(("policy", "block_it", Some("deny"))));
        assert_eq!(of("filter_OUT_policy_hostout"), Some(("policy", "hostout", None)));
        assert_eq!(of("filter_FWD_public_post"), Some(("zone", "public", Some("post"))));
        assert_eq!(of("filter_OUTPUT"), None);
        assert_eq!(of("filter_IN_public_deny"), None, "nothing of what goes out");
    }
}
