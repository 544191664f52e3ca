//! `observer man`: one page, with a section for each command.

use std::io::{self, Write};

use anyhow::Result;
use clap::CommandFactory;
use clap_mangen::Man;

use super::{Cli, Exit};

pub(super) fn run() -> Result<Exit> {
    super::written(io::stdout().write_all(&page()?)).map(|()| Exit::Done)
}

/// The page, as roff.
fn page() -> io::Result<Vec<u8>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut page = Vec::new();
    Man::new(command.clone()).section("8").render(&mut page)?;
    for of in command.get_subcommands() {
        writeln!(page, ".SH \"{}\"", format!("observer {}", of.get_name()).to_uppercase())?;
        let man = Man::new(of.clone().bin_name(format!("observer {}", of.get_name())));
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_option_is_in_it() {
        let page = String::from_utf8(page().unwrap()).unwrap();
        for words in ["OBSERVER WATCH", "OBSERVER CHECK", "\\-\\-fail\\-on\\-block", "\\-\\-as\\-unit"] {
            assert!(page.contains(words), "{words}");
        }
    }
}
