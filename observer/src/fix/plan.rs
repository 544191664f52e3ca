//! Which commands might let a packet through, the best first. Pure: whether they do is seen in the copy.
//!
//! No text from outside becomes part of a command but names of tables, chains, policies and interfaces, and those only where
//! they consist of letters, digits and a few marks that no shell knows.

use std::net::IpAddr;

use super::{firewalld, tables, ufw};
use crate::{
    firewall::front_ends,
    model::{Backend, Lasts, NamedRule, Scope},
};

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
}

impl Target {
    /// `443/tcp`
    pub(super) fn port(&self) -> String {
        format!("{}/{}", self.port, self.transport)
    }

    pub(super) fn opens_port(&self) -> String {
        let whose = if self.is_forwarded { ", for what is forwarded" } else { "" };
        format!("{} to every destination{whose}", self.port())
    }

    pub(super) fn opens_address(&self, addresses: &[IpAddr]) -> String {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        format!("{} to {} alone", self.port(), addresses.join(" and "))
    }

    /// What is to be known of a rule for addresses.
    pub(super) fn of_addresses(&self) -> String {
        let words = if self.is_by_name {
            "it holds as long as the name has these addresses"
        } else {
            "where a name led to this address, it holds as long as that does"
        };
        words.to_owned()
    }

    /// Those of one family.
    pub(super) fn of_family(&self, v6: bool) -> Vec<IpAddr> {
        self.addresses.iter().copied().filter(|address| address.is_ipv6() == v6).collect()
    }
}

/// What is known of the host's programs and files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Which tables plain `iptables` is about; `None` where it is not installed.
    pub iptables: Option<Backend>,
    /// ufw's statements.
    pub ufw: front_ends::Entries,
}

/// Commands that might do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) commands: Vec<String>,
    pub(super) undo: Vec<String>,
    pub(super) scope: Scope,
    pub(super) opens: String,
    pub(super) lasts: Lasts,
    pub(super) note: Option<String>,
}

/// Whose programs are to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontEnd {
    /// ufw.
    Ufw,
    /// firewalld.
    Firewalld,
    /// Rules are changed as they are.
    Tables,
}

impl FrontEnd {
    /// Whose the rule is.
    pub fn of(rule: &NamedRule) -> Self {
        match rule.statement.as_ref().map(|statement| statement.ruleset.as_str()) {
            Some("ufw") => Self::Ufw,
            Some("firewalld") => Self::Firewalld,
            _ => Self::Tables,
        }
    }
}

/// The commands that might do it, the best first; or what does, where no command is known.
pub(super) fn plans(rule: &NamedRule, target: &Target, known: &Known) -> Result<Vec<Plan>, Option<String>> {
    if rule.translates.is_some() {
        let what = "what the rule translates to must be there: for a masquerade an address of scope global on the interface by \
                    which packets leave";
        return Err(Some(what.to_owned()));
    }
    let plans = match FrontEnd::of(rule) {
        FrontEnd::Ufw => ufw::plans(rule, target, known)?,
        FrontEnd::Firewalld => firewalld::plans(rule, target)?,
        FrontEnd::Tables => tables::plans(rule, target, known)?,
    };
    if plans.is_empty() { Err(None) } else { Ok(plans) }
}

/// A word that no shell and no front end takes for anything else, and that is no option.
pub(super) fn plain(word: &str) -> Option<&str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:/,-+".contains(&byte);
    (!word.is_empty() && !word.starts_with('-') && word.bytes().all(is_plain)).then_some(word)
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
