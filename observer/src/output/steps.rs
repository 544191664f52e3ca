//! The page for a profile: what it needs, how to let it out by one front end, how to see that it works, how to take it back.

use std::io::{self, Write};

use crate::check::{Entry, profiles::Profile};

/// By which the rules are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// ufw.
    Ufw,
    /// firewalld: a policy for what the host sends.
    Firewalld,
    /// nftables: a table of the administrator's own.
    Nft,
    /// iptables.
    Iptables,
}

/// All of them.
pub const ALL: [By; 4] = [By::Ufw, By::Firewalld, By::Nft, By::Iptables];

/// A port, and its protocol.
type Port = (u16, &'static str);

impl By {
    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ufw => "ufw",
            Self::Firewalld => "firewalld",
            Self::Nft => "nft",
            Self::Iptables => "iptables",
        }
    }

    /// What is said before the commands.
    fn ground(self) -> &'static str {
        match self {
            Self::Ufw => {
                "For a host on which `sudo ufw status verbose` says `deny (outgoing)`, or has a rule for one of these ports alone."
            }
            Self::Firewalld => {
                "Zones do not filter what a host sends: a policy from `HOST` to `ANY` does. `sudo firewall-cmd --list-all-policies` \
                 names it; here it is `hostout`. A port that is added helps where the policy's target stops it; before a rich rule \
                 that rejects, only a rich rule with a negative priority does, which `observer check` names."
            }
            Self::Nft => {
                "For a table `inet filter` with a chain `output`, as Debian's `/etc/nftables.conf` has it. An accept counts in its own \
                 chain alone: where another one drops, `observer check` names it."
            }
            Self::Iptables => "For the chain `OUTPUT` of both families. IPv6 has rules of its own.",
        }
    }

    /// What lets ports out.
    fn allow(self, ports: &[Port]) -> Vec<String> {
        let one = |(port, transport): &Port| match self {
            Self::Ufw => vec![format!("ufw allow out {port}/{transport}")],
            Self::Firewalld => ["", "--permanent "]
                .map(|kept| format!("firewall-cmd {kept}--policy hostout --add-port {port}/{transport}"))
                .to_vec(),
            Self::Nft => vec![format!("nft insert rule inet filter output {transport} dport {port} accept")],
            Self::Iptables => ["iptables", "ip6tables"]
                .map(|program| format!("{program} -I OUTPUT -p {transport} --dport {port} -j ACCEPT"))
                .to_vec(),
        };
        ports.iter().flat_map(one).collect()
    }

    /// What takes that back.
    fn undo(self, ports: &[Port]) -> Vec<String> {
        let one = |(port, transport): &Port| match self {
            Self::Ufw => vec![format!("ufw delete allow out {port}/{transport}")],
            Self::Firewalld => ["", "--permanent "]
                .map(|kept| format!("firewall-cmd {kept}--policy hostout --remove-port {port}/{transport}"))
                .to_vec(),
            Self::Nft => vec![format!(
                "nft delete rule inet filter output handle $(nft -a list chain inet filter output | \
                 sed -n 's/.*{transport} dport {port} accept # handle //p')"
            )],
            Self::Iptables => ["iptables", "ip6tables"]
                .map(|program| format!("{program} -D OUTPUT -p {transport} --dport {port} -j ACCEPT"))
                .to_vec(),
        };
        ports.iter().rev().flat_map(one).collect()
    }

    /// What is to be known afterwards.
    fn lasts(self) -> &'static str {
        match self {
            Self::Ufw => {
                "ufw keeps them. A rule that denies one of these ports alone is changed where it stands; a wider one in front still \
                 counts: `sudo ufw status numbered`, then `sudo ufw insert N allow out 443/tcp`. `ufw insert 1 allow out 443/tcp` does \
                 nothing, without saying so, where `deny out 443/tcp` exists."
            }
            Self::Firewalld => {
                "Both are changed, what is in force and what is kept: no reload, which would lose what is not kept."
            }
            Self::Nft => {
                "They last until the rules are loaded anew: write them into `/etc/nftables.conf` too, in front of what drops."
            }
            Self::Iptables => {
                "They last until the next start: `sudo netfilter-persistent save` keeps them where that is installed."
            }
        }
    }
}

/// Ports of all destinations, those of names among them: without a resolver there is no address.
fn ports(entries: &[Entry]) -> Vec<Port> {
    let mut ports: Vec<Port> = vec![(53, "udp"), (53, "tcp")];
    for entry in entries {
        let port = (entry.port, entry.transport);
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports
}

/// Writes the page.
pub fn write(writer: &mut impl Write, by: By, profile: &Profile, entries: &[Entry]) -> io::Result<()> {
    let ports = ports(entries);
    writeln!(writer, "# {}: let it out through {}\n", profile.title, by.name())?;
    writeln!(
        writer,
        "Made by `observer check --steps {} {}`, from <{}> as of {}.\n",
        by.name(),
        profile.name,
        profile.source,
        profile.as_of
    )?;
    writeln!(writer, "| phase | destination | port | purpose |\n|---|---|---|---|")?;
    for entry in entries {
        let Some(of) = &entry.profile else { continue };
        let optional = if of.is_required { "" } else { " (optional)" };
        writeln!(
            writer,
            "| {} | `{}` | {}/{} | {}{optional} |",
            of.phase, entry.host, entry.port, entry.transport, of.purpose
        )?;
    }
    writeln!(writer, "\n## What is blocked\n\n```sh\nsudo observer check {}\n```\n", profile.name)?;
    writeln!(
        writer,
        "It names the rule that stops each destination, and a command that was proven in a private copy: where it differs from what \
         follows, it knows this host better.\n"
    )?;
    writeln!(writer, "## Let it out\n\n{}\n", by.ground())?;
    block(writer, &by.allow(&ports))?;
    writeln!(writer, "\nPort 53 is the resolver's, without which no name has an address. {}\n", by.lasts())?;
    writeln!(writer, "## See that it works\n\n```sh\nsudo observer check {}\n```\n", profile.name)?;
    writeln!(writer, "It ends with status 0 and `none of {} blocked`.\n", entries.len())?;
    writeln!(writer, "## Take it back\n")?;
    block(writer, &by.undo(&ports))?;
    if by == By::Ufw {
        writeln!(
            writer,
            "\nA rule that was changed in place comes back by its own words, `sudo ufw deny out 443/tcp`."
        )?;
    }
    writer.flush()
}

fn block(writer: &mut impl Write, lines: &[String]) -> io::Result<()> {
    writeln!(writer, "```sh")?;
    for line in lines {
        writeln!(writer, "{}", super::fix::as_root(line))?;
    }
    writeln!(writer, "```")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::check::{Values, profiles::Profiles};

    /// `docs/datadog.md` is what the program prints.
    #[test]
    fn the_page_in_the_documentation_is_the_programs() {
        let profiles = Profiles::read(Path::new("/nonexistent")).unwrap();
        let profile = profiles.get("datadog").unwrap();
        let mut page = Vec::new();
        for (index, by) in ALL.into_iter().enumerate() {
            if index > 0 {
                page.push(b'\n');
            }
            write(&mut page, by, profile, &profile.entries(&Values::new()).unwrap()).unwrap();
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/datadog.md");
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        let page = String::from_utf8(page).unwrap();
        assert!(
            kept == page,
            "docs/datadog.md is not what `observer check --steps` prints for {}",
            ALL.map(By::name).join(", ")
        );
    }
}
