//! Which commands might let a packet through, the best first. Pure: whether they do is seen in a private copy.
//!
//! No text from outside becomes part of a command but names of tables, chains, policies and interfaces, and those only where
//! they consist of letters, digits and a few marks that no shell knows.

use std::net::IpAddr;

use super::{ALL, iptables};
use crate::{
    firewall::files::Root,
    model::{Backend, Lasts, NamedRule, PacketKind, Scope},
};

/// How the comments begin by which observer's own rules are found again.
pub const MARK: &str = "observer-";

/// What is to get through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// `tcp` or `udp`.
    pub transport: &'static str,
    /// Destination port.
    pub port: u16,
    /// Where to.
    pub addresses: Vec<IpAddr>,
    /// The destination is known by its name, and the addresses may be others tomorrow.
    pub is_by_name: bool,
    /// It is forwarded for others.
    pub is_forwarded: bool,
    /// By which interface it comes in then, where that is known.
    pub comes_by: Option<String>,
    /// Who else may send by this host.
    pub others: Others,
}

/// Whose packets pass a host beside its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Nobody's, as far as is known.
    Nobody,
    /// It forwards for others.
    Forwarded,
    /// The same, and some may have its address then, as by a masquerade.
    Translated,
}

impl Target {
    /// `443/tcp`
    pub(super) fn port(&self) -> String {
        format!("{}/{}", self.port, self.transport)
    }

    /// Whose packets: nothing for those of this host.
    fn whose(&self) -> String {
        match &self.comes_by {
            Some(name) if self.is_forwarded => format!(", for what comes in by {name}"),
            _ if self.is_forwarded => ", for what is forwarded".to_owned(),
            _ => String::new(),
        }
    }

    /// The same for whatever interface it comes in by.
    pub(super) fn by_any(&self) -> Self {
        Self { comes_by: None, ..self.clone() }
    }

    pub(super) fn opens_port(&self) -> String {
        self.opens_port_of("")
    }

    /// The same by a rule of such a table: `ip` and `ip6` are about one family.
    pub(super) fn opens_port_of(&self, family: &str) -> String {
        let family = match family {
            "ip" => "IPv4 ",
            "ip6" => "IPv6 ",
            _ => "",
        };
        format!("{} to every {family}destination{}", self.port(), self.whose())
    }

    pub(super) fn opens_address(&self, addresses: &[IpAddr]) -> String {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        format!("{} to {} alone{}", self.port(), addresses.join(" and "), self.whose())
    }

    /// How much is opened for what was asked: the addresses, or the port where they may be others tomorrow.
    pub(super) fn opens(&self, family: &str, addresses: &[IpAddr]) -> (Scope, String) {
        if self.is_by_name {
            (Scope::Port, self.opens_port_of(family))
        } else {
            (Scope::Address, self.opens_address(addresses))
        }
    }

    /// What is to be known of a rule for addresses.
    pub(super) fn of_addresses(&self) -> String {
        let words = if self.is_by_name {
            "opened by address: breaks when the name's addresses change"
        } else {
            "opened by address: breaks if a name led here and its address changes"
        };
        words.to_owned()
    }

    /// What comes back from there.
    pub(super) fn opens_answers(&self, addresses: Option<&[IpAddr]>) -> String {
        let whom = addresses.map_or("every server".to_owned(), |addresses| {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            addresses.join(" and ")
        });
        let to = match &self.comes_by {
            Some(name) if self.is_forwarded => format!("forwarded connections that come in by {name}"),
            _ if self.is_forwarded => "forwarded connections".to_owned(),
            _ => "connections that this host has begun".to_owned(),
        };
        format!("answers from {} of {whom} to {to}", self.port())
    }

    /// Those of one family.
    pub(super) fn of_family(&self, v6: bool) -> Vec<IpAddr> {
        self.addresses.iter().copied().filter(|address| address.is_ipv6() == v6).collect()
    }
}

/// What is known of the host's programs and files.
#[derive(Debug, Default)]
pub struct Known {
    /// Which tables plain `iptables` is about; `None` where it is not installed.
    pub(super) iptables: Option<Backend>,
    /// Files of front ends, of which plans are made.
    files: Vec<(&'static str, String)>,
}

impl Known {
    /// By the host's programs, and files below a root folder.
    pub fn read(root: &Root) -> Self {
        let paths = ALL
            .iter()
            .map(|front_end| front_end.needs())
            .flat_map(|needs| needs.planned_from.iter().chain(needs.noted_from));
        let files = paths.filter_map(|path| Some((*path, root.read(path).ok()?))).collect();
        Self { iptables: iptables::Version::read().map(|version| version.backend), files }
    }

    /// Text of a file; empty where it cannot be read.
    pub(super) fn file(&self, path: &str) -> &str {
        self.files.iter().find(|(of, _)| *of == path).map_or("", |(_, text)| text)
    }
}

/// Commands, the best first; or, where none is known, what an administrator can do instead.
pub type Plans = Result<Vec<Plan>, Option<String>>;

/// Commands that might do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What is run, one after the other.
    pub commands: Vec<String>,
    /// What takes it back.
    pub undo: Vec<String>,
    /// How much it opens.
    pub scope: Scope,
    /// The same in words.
    pub opens: String,
    /// How long it lasts.
    pub lasts: Lasts,
    /// What is to be known of it.
    pub note: Option<String>,
}

/// The commands that might let the target through a rule, as the rule's front end plans them.
pub fn plans(rule: &NamedRule, target: &Target, known: &Known) -> Plans {
    if rule.translates.is_some() {
        let what = "what the rule translates to must be there: for a masquerade an address of scope global on the interface by \
                    which packets leave";
        return Err(Some(what.to_owned()));
    }
    let front_end = super::of(rule);
    // Only rules themselves can be about anything but what is sent.
    let is_of_its_own = rule.packet.is_none_or(|packet| packet == PacketKind::Segment);
    let by_rules = [iptables::NAME, super::IPTABLES_LEGACY, super::NFTABLES].contains(&front_end.name());
    if rule.leads_to.is_some() {
        return Err(None);
    }
    if let Some(owner) = ALL.iter().find(|owner| owner.rewrites(rule)) {
        return Err(if is_of_its_own { owner.advice(rule, target) } else { owner.advice_for_others(rule) });
    }
    if !is_of_its_own && !by_rules {
        return Err(front_end.advice_for_others(rule));
    }
    let planned = front_end.plans(rule, target, known);
    let mut plans = planned.map_err(|instead| instead.or_else(|| front_end.advice(rule, target)))?;
    // The narrowest first; but addresses may be others tomorrow, and a rule about the port is taken back by one. Nobody asked for
    // whatever else a rule stops.
    let is_narrow_first = !target.is_by_name && !is_about_the_port(rule, target);
    plans.sort_by_key(|plan| {
        (plan.lasts == Lasts::Hour, plan.scope == Scope::Rule, is_narrow_first.then_some(plan.scope))
    });
    if plans.is_empty() { Err(front_end.advice(rule, target)) } else { Ok(plans) }
}

/// A rule names the port, and no addresses.
fn is_about_the_port(rule: &NamedRule, target: &Target) -> bool {
    let words: Vec<&str> = rule.words().unwrap_or_default().split(' ').collect();
    const ADDRESSES: [&str; 9] =
        ["daddr", "saddr", "-d", "-s", "from", "to", "--match-set", "--dst-range", "--src-range"];
    let names_addresses = words.windows(2).any(|pair| ADDRESSES.contains(&pair[0]) && pair[1] != "any")
        || words.iter().any(|word| word.starts_with("address="));
    let port = target.port.to_string();
    let names_port = words.iter().any(|word| word.split(|sign: char| !sign.is_ascii_digit()).any(|part| part == port));
    names_port && !names_addresses
}

/// A word that no shell and no front end takes for anything else, and that is no option.
pub(super) fn plain(word: &str) -> Option<&str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/,-+".contains(&byte);
    // A longer one would not fit into a row of a terminal.
    const MAX: usize = 64;
    ((1..=MAX).contains(&word.len()) && !word.starts_with('-') && word.bytes().all(is_plain)).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_shell_knows_is_plain() {
        for word in ["filter", "ufw-user-output", "eth0.100", "203.0.113.0/24", "2001:db8::/32", "1000:1010,2000/udp"] {
            assert_eq!(plain(word), Some(word));
        }
        for word in [
            "",
            "-j",
            "a b",
            "a;b",
            "$(reboot)",
            "`x`",
            "a\nb",
            "a'b",
            "a\"b",
            "a|b",
            "a>b",
            "é",
            "a*",
            "a?",
            "~",
            "a&b",
        ] {
            assert_eq!(plain(word), None, "{word}");
        }
    }
}
