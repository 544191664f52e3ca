//! What a sender will need beside the destination that was blocked: the profile of the agent that it is or installs, and the
//! sources of the package manager that it belongs to. One `observer check` of these finds everything that is blocked.

use std::collections::BTreeMap;

use super::{Values, host, profiles::Profiles};
use crate::model::Sender;

/// Package managers by the names of their programs, and what `check` calls their sources.
const MANAGERS: [(&str, &str); 10] = [
    ("apt", "apt"),
    ("apt-get", "apt"),
    ("aptitude", "apt"),
    ("apt-helper", "apt"),
    ("unattended-upgr", "apt"),
    ("packagekitd", "apt"),
    ("dnf", "dnf"),
    ("dnf5", "dnf"),
    ("yum", "dnf"),
    ("microdnf", "dnf"),
];
/// Bytes of a command line that are read: a stranger can make it long.
const MAX_ARGS: usize = 4096;

/// Hosts of profiles, each with the profiles that name it.
#[derive(Default)]
pub struct Hints {
    hosts: BTreeMap<String, Vec<String>>,
    /// What follows the `*` of a name: `.agent.datadoghq.com`.
    endings: Vec<(String, String)>,
}

impl Hints {
    /// Of all profiles.
    pub fn new(profiles: &Profiles) -> Self {
        let mut hints = Self::default();
        for (profile, _) in profiles.all() {
            // Where a value must be given, the destinations are this host's own business.
            for entry in profile.entries(&Values::new()).into_iter().flatten() {
                match entry.host.split_once('*') {
                    Some((_, ending)) => hints.endings.push((ending.to_lowercase(), profile.name.clone())),
                    None => hints.hosts.entry(entry.host.to_lowercase()).or_default().push(profile.name.clone()),
                }
            }
        }
        hints
    }

    /// Names for `observer check`, each once.
    pub fn of(&self, sender: &Sender) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        let mut add = |name: &str| {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        };
        if let Some(unit) = &sender.unit {
            host::agent_of(unit).into_iter().for_each(&mut add);
        }
        let args = sender.process.as_ref().and_then(|process| process.args.as_ref());
        let mut left = MAX_ARGS;
        for arg in args.into_iter().flatten() {
            let Some(rest) = left.checked_sub(arg.len()) else { break };
            left = rest;
            let is_of_a_name = |character: char| character.is_ascii_alphanumeric() || "-.".contains(character);
            for word in arg.split(|character| !is_of_a_name(character)).filter(|word| word.contains('.')) {
                let word = word.to_lowercase();
                // A host that very many profiles name says nothing of any.
                if let Some([name]) = self.hosts.get(&word).map(Vec::as_slice) {
                    add(name);
                }
                self.endings.iter().filter(|(ending, _)| word.ends_with(ending)).for_each(|(_, name)| add(name));
            }
        }
        let lineage = sender.ancestry.iter().map(|ancestor| ancestor.name.as_str());
        for manager in lineage.filter_map(|name| MANAGERS.iter().find(|(known, _)| *known == name)) {
            add(manager.1);
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Ancestor;

    fn sender(args: &[&str], ancestry: &[&str]) -> Sender {
        let mut sender = Sender::example("/usr/bin/curl", 7);
        if let Some(process) = &mut sender.process {
            process.args = Some(args.iter().map(|arg| (*arg).to_owned()).collect());
        }
        sender.ancestry.extend(ancestry.iter().map(|name| Ancestor { pid: 9, name: (*name).to_owned() }));
        sender
    }

    #[test]
    fn what_a_command_line_and_its_parents_say() {
        let hints = Hints::new(&Profiles::read(Path::new("/nonexistent")).unwrap());
        let of = |args: &[&str], ancestry: &[&str]| hints.of(&sender(args, ancestry));
        assert_eq!(of(&["curl", "-fsSL", "https://install.datadoghq.com/scripts/install.sh"], &["bash"]), ["datadog"]);
        assert_eq!(of(&["curl", "https://7-31-0-app.agent.datadoghq.com"], &[]), ["datadog"]);
        assert_eq!(of(&["https"], &["apt-get", "sh"]), ["apt"]);
        assert!(of(&["curl", "https://example.com"], &["bash"]).is_empty());
        let unit = Sender { unit: Some("datadog-agent.service".to_owned()), ..sender(&[], &[]) };
        assert_eq!(hints.of(&unit), ["datadog"]);
    }

    #[test]
    fn a_long_command_line_is_read_in_part() {
        let hints = Hints::new(&Profiles::read(Path::new("/nonexistent")).unwrap());
        let long = "x".repeat(MAX_ARGS);
        assert!(hints.of(&sender(&["curl", &long, "https://install.datadoghq.com"], &[])).is_empty());
    }
}
