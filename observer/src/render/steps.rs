//! The page for a profile: what it needs, how to let it out by one front end, how to see that it works, how to take it back.

use std::io::{self, Write};

use crate::{
    check::{Entry, profiles::Profile},
    firewall::front_end::{Page, Port},
};

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
pub fn write(writer: &mut impl Write, page: &Page, profile: &Profile, entries: &[Entry]) -> io::Result<()> {
    let ports = ports(entries);
    writeln!(writer, "# {}: let it out through {}\n", profile.title, page.name)?;
    writeln!(
        writer,
        "Made by `observer check --steps {} {}`, from <{}> as of {}.\n",
        page.name, profile.name, profile.source, profile.as_of
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
        "It names the rule that stops each destination, and a command that was tested in a private copy: where it differs from what \
         follows, it knows this host better.\n"
    )?;
    writeln!(writer, "## Let it out\n\n{}\n", page.ground)?;
    block(writer, ports.iter().flat_map(|port| (page.allow)(*port)))?;
    writeln!(writer, "\nPort 53 is the resolver's, without which no name has an address. {}\n", page.lasts)?;
    writeln!(writer, "## See that it works\n\n```sh\nsudo observer check {}\n```\n", profile.name)?;
    writeln!(writer, "It ends with status 0 and `none of {} blocked`.\n", entries.len())?;
    writeln!(writer, "## Take it back\n")?;
    block(writer, ports.iter().rev().flat_map(|port| (page.undo)(*port)))?;
    if let Some(words) = page.undone {
        writeln!(writer, "\n{words}")?;
    }
    writer.flush()
}

fn block(writer: &mut impl Write, lines: impl Iterator<Item = String>) -> io::Result<()> {
    writeln!(writer, "```sh")?;
    for line in lines {
        writeln!(writer, "{}", super::fix::with_sudo(&line))?;
    }
    writeln!(writer, "```")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        check::{Values, profiles::Profiles},
        firewall::front_end,
    };

    /// `docs/datadog.md` is what the program prints.
    #[test]
    fn the_page_in_the_documentation_is_the_programs() {
        let profiles = Profiles::read(Path::new("/nonexistent")).unwrap();
        let profile = profiles.get("datadog").unwrap();
        let mut page = Vec::new();
        for (index, (_, of)) in front_end::pages().enumerate() {
            if index > 0 {
                page.push(b'\n');
            }
            write(&mut page, of, profile, &profile.entries(&Values::new()).unwrap()).unwrap();
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/datadog.md");
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        let page = String::from_utf8(page).unwrap();
        assert!(
            kept == page,
            "docs/datadog.md is not what `observer check --steps` prints for {:?}",
            front_end::pages().map(|(_, of)| of.name).collect::<Vec<_>>()
        );
    }
}
