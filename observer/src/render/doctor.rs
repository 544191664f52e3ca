//! The answer of `doctor`, for a person, a program or a ticket.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::{
    escape::escape,
    json::{self, State},
};
use crate::{
    attribute::host::Identity,
    model::{Check, Diagnosis, Status},
};

fn style(status: Status) -> Style {
    match status {
        Status::Ok => AnsiColor::Green.on_default(),
        Status::Note | Status::Unknown => Style::new().bold(),
        Status::Degraded => AnsiColor::Yellow.on_default().bold(),
        Status::Failed => AnsiColor::Red.on_default().bold(),
    }
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Unknown => "unknown",
        Status::Note => "note",
        Status::Degraded => "degraded",
        Status::Failed => "FAILED",
    }
}

/// For a person.
pub fn human(writer: &mut impl Write, diagnosis: &Diagnosis) -> io::Result<()> {
    let worst = style(diagnosis.worst());
    writeln!(writer, "{:<11}{worst}{}{worst:#}", "VERDICT", diagnosis.verdict())?;
    for check in &diagnosis.checks {
        let style = style(check.status);
        writeln!(writer, "{:<11}{style}{:<9}{style:#}{}", check.name, word(check.status), escape(&check.detail))?;
        for (sign, text) in [("so", &check.consequence), ("→", &check.remedy)] {
            if let Some(text) = text {
                writeln!(writer, "{:<20}{sign:<3}{}", "", escape(text))?;
            }
        }
    }
    writer.flush()
}

/// For a ticket.
pub fn markdown(writer: &mut impl Write, diagnosis: &Diagnosis) -> io::Result<()> {
    let cell = |text: &str| escape(text).replace('|', "\\|");
    writeln!(writer, "**observer doctor: {}**\n", diagnosis.verdict())?;
    writeln!(writer, "| check | status | found | consequence | remedy |\n|---|---|---|---|---|")?;
    for Check { name, status, detail, consequence, remedy } in &diagnosis.checks {
        let optional = |text: &Option<String>| text.as_deref().map(cell).unwrap_or_default();
        writeln!(
            writer,
            "| {name} | {} | {} | {} | {} |",
            word(*status),
            cell(detail),
            optional(consequence),
            optional(remedy)
        )?;
    }
    writer.flush()
}

#[derive(Serialize)]
struct StateEgress<'a> {
    observable: bool,
    #[serde(flatten)]
    diagnosis: &'a Diagnosis,
}

/// For a program: one object on one line.
pub fn json(writer: &mut impl Write, diagnosis: &Diagnosis) -> io::Result<()> {
    let reporter = Identity::read().reporter;
    let egress = StateEgress { observable: diagnosis.worst() < Status::Failed, diagnosis };
    let state = State::new(&reporter, "observer.doctor", Some(diagnosis.verdict()), egress);
    json::write_line(writer, &state)?;
    writer.flush()
}
