//! What lets something through, in words and lines: the same wherever it is told.

use std::io::{self, Write};

use super::escape::escape;
use crate::model::{Fix, Lasts};

/// A line for root's shell as whoever may become root types it.
pub(super) fn as_root(line: &str) -> String {
    format!("sudo {}", line.replace("$(", "$(sudo "))
}

/// What is known of a fix, in words.
pub(super) fn about(fix: &Fix) -> String {
    let mut parts = Vec::new();
    if fix.verified {
        let addresses: Vec<String> = fix.verified_for.iter().map(ToString::to_string).collect();
        let of = if addresses.is_empty() { String::new() } else { format!(" for {}", addresses.join(" and ")) };
        parts.push(format!("proven in a private copy{of}"));
    } else if let Some(why) = &fix.unverified {
        parts.push(format!("not proven: {why}"));
    }
    if let Some(opens) = &fix.opens {
        parts.push(format!("opens {opens}"));
    }
    parts.extend(match fix.lasts {
        Some(Lasts::Permanent) => Some("stays".to_owned()),
        Some(Lasts::Reload) => Some("until the rules are loaded anew".to_owned()),
        None => None,
    });
    if fix.undo_verified == Some(false) {
        parts.push("the undo does not bring back what was there".to_owned());
    }
    parts.extend(fix.note.clone());
    parts.join(" · ")
}

/// Its commands in blocks for a shell, as Markdown.
pub(super) fn blocks(writer: &mut impl Write, fix: &Fix) -> io::Result<()> {
    for (title, lines) in [("Commands", &fix.commands), ("To take it back", &fix.undo)] {
        if lines.is_empty() {
            continue;
        }
        writeln!(writer, "\n{title}:\n\n```sh")?;
        for line in lines {
            writeln!(writer, "{}", escape(line))?;
        }
        writeln!(writer, "```")?;
    }
    Ok(())
}
