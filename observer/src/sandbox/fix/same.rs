//! Whether a rule of the copy is one of the host's.

use super::Trial;
use crate::{
    firewall::front_end,
    model::{Backend, NamedRule, PacketKind},
};

/// What stops packets in the copy, before anything was changed there, where that is not what stops them on the host; in words.
pub fn differs<'a>(
    on_the_host: impl Iterator<Item = Option<&'a NamedRule>>,
    in_the_copy: &[Option<NamedRule>],
    trial: &Trial,
) -> Option<String> {
    on_the_host.zip(in_the_copy).find_map(|(there, here)| {
        let is_that = match (here, there) {
            (Some(here), Some(there)) => is_that(here, there, trial),
            (here, there) => here.is_none() && there.is_none(),
        };
        let rule = there.or(here.as_ref());
        let of_files = rule.map(front_end::of).filter(|front_end| front_end.has_files()).map(front_end::FrontEnd::name);
        match (is_that, of_files, here) {
            (true, ..) => None,
            (false, Some(name), None) => {
                Some(format!("the live rules differ from {name}'s files, which already allow this; {}", reload(name)))
            }
            (false, Some(name), Some(here)) => Some(format!(
                "the live rules differ from {name}'s files, by which {}; {}",
                here.sentence(),
                reload(name)
            )),
            (false, None, None) => Some("in the copy it passes".to_owned()),
            (false, None, Some(here)) => Some(format!("in the copy {}", here.sentence())),
        }
    })
}

/// What has a front end load its files.
fn reload(name: &str) -> &'static str {
    match name {
        "ufw" => "`ufw reload` loads them where ufw is enabled",
        "firewalld" => "`firewall-cmd --reload` loads them",
        _ => "reload them",
    }
}

/// It is the same statement, whatever number it has now, or the same rule of the copy; and it stops the same packet.
pub(super) fn is_same(one: &NamedRule, other: &NamedRule) -> bool {
    if one.packet != other.packet || one.leads_to != other.leads_to {
        return false;
    }
    let words =
        |rule: &NamedRule| rule.statement.as_ref().map(|of| (of.ruleset.clone(), of.name.clone(), of.comment.clone()));
    match (words(one), words(other)) {
        (Some(one), Some(other)) => one == other,
        _ => {
            (&one.family, &one.table, &one.chain, one.handle)
                == (&other.family, &other.table, &other.chain, other.handle)
        }
    }
}

/// A rule of the copy, as it was made, is this one of the host.
pub(super) fn is_that(rule: &NamedRule, on_the_host: &NamedRule, trial: &Trial) -> bool {
    // What rejects there drops in the copy, whose text is another one then.
    // Of a packet that was seen later it is not known whether its connection would begin.
    let rule = &NamedRule {
        packet: if on_the_host.packet == Some(PacketKind::Segment) { on_the_host.packet } else { rule.packet },
        ..rule.clone()
    };
    let is_in_place = rule.backend == Backend::IptablesLegacy
        && (&rule.family, &rule.table, &rule.chain, rule.position)
            == (&on_the_host.family, &on_the_host.table, &on_the_host.chain, on_the_host.position);
    is_in_place || trial.on_the_host(rule).is_ok_and(|rule| is_same(&rule, on_the_host))
}
