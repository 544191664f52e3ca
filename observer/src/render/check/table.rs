//! Destinations as a table. On a narrow terminal it drops columns in order of importance: first the purpose, then the phase; then
//! what stops a destination stands below it.

use std::io::{self, Write};

use anstyle::Style;
use textwrap::core::display_width;

use crate::render::{
    escape::escape,
    screen::{self, Screen},
};

/// So many columns are left for what stops a destination, else it stands below the others.
const MIN_REST: usize = 24;
/// A column is at most this wide.
const MAX_COLUMN: usize = 60;
/// What stops a destination takes so many rows beside the others.
const MOST_ROWS: usize = 2;
/// One row of so many may be too long for its column.
const MOST_LONG: usize = 4;

/// One destination.
pub(super) struct Row {
    /// `install` or `run`; empty of a destination of no profile.
    pub(super) phase: String,
    /// Host and port.
    pub(super) place: String,
    /// What it is for.
    pub(super) purpose: String,
    /// How loud the verdict is.
    pub(super) style: Style,
    /// `BLOCKED v4, allowed v6`
    pub(super) verdict: String,
    /// What stops it, and remarks.
    pub(super) rest: String,
}

/// How wide the columns are, with the gap behind them; 0 for one that is not shown.
struct Columns {
    phase: usize,
    place: usize,
    purpose: usize,
    verdict: usize,
    /// What stops a destination stands beside it.
    is_table: bool,
}

/// With the gap behind it.
fn gap(wide: usize) -> usize {
    if wide == 0 { 0 } else { wide + 2 }
}

impl Columns {
    fn of(rows: &[Row], width: Option<usize>) -> Self {
        let wide = |of: fn(&Row) -> &String| {
            rows.iter().map(|row| display_width(&escape(of(row)))).max().unwrap_or(0).min(MAX_COLUMN)
        };
        let (phase, purpose) = (gap(wide(|row| &row.phase)), gap(wide(|row| &row.purpose)));
        let (widest, verdict) = (wide(|row| &row.place), gap(wide(|row| &row.verdict)));
        let need = wide(|row| &row.rest).min(MIN_REST);
        // A few long names must not cost the table: their rows stand in two lines.
        let room = width.map_or(widest, |width| width.saturating_sub(verdict + need + 2));
        let longer = rows.iter().filter(|row| display_width(&escape(&row.place)) > room).count();
        let place = gap(if longer * MOST_LONG <= rows.len() { widest.min(room) } else { widest });
        let fits = |more: usize| width.is_none_or(|width| place + verdict + need + more <= width);
        let shown_phase = if fits(phase) { phase } else { 0 };
        let shown_purpose = if shown_phase == phase && fits(phase + purpose) { purpose } else { 0 };
        Self { phase: shown_phase, place, purpose: shown_purpose, verdict, is_table: fits(shown_phase) }
    }

    fn before_the_rest(&self) -> usize {
        self.phase + self.place + self.purpose + self.verdict
    }
}

/// Text and blanks up to the next column.
fn padded(text: &str, column: usize) -> String {
    let text = escape(text);
    let pad = column.saturating_sub(display_width(&text)).max(2);
    format!("{text}{}", " ".repeat(pad))
}

/// Writes all rows.
pub(super) fn write(writer: &mut Screen<impl Write>, rows: &[Row]) -> io::Result<()> {
    let width = writer.width();
    let columns = Columns::of(rows, width);
    for row in rows {
        let longest = row.rest.split(' ').map(display_width).max().unwrap_or(0);
        let is_cut = width.is_some_and(|width| {
            let left = width.saturating_sub(columns.before_the_rest());
            // Beside the others it would be a tower.
            longest > left || display_width(&row.rest) > MOST_ROWS * left
        });
        let is_long = width.is_some() && display_width(&escape(&row.place)) + 2 > columns.place;
        if !columns.is_table || is_cut || is_long { below(writer, row)? } else { beside(writer, row, &columns)? }
    }
    Ok(())
}

/// What stops it stands below, where it does not fit beside.
fn below(writer: &mut Screen<impl Write>, row: &Row) -> io::Result<()> {
    let Row { place, style, verdict, rest, .. } = row;
    let (place, rest) = (escape(place), escape(rest));
    let head = display_width(&place) + 2 + display_width(verdict);
    let fits = |columns: usize| writer.width().is_none_or(|width| columns <= width);
    let (first, second) = match rest.is_empty() {
        _ if !fits(head) => ("\n    ", "  "),
        false if !fits(head + 2 + display_width(&rest)) => ("  ", "\n    "),
        _ => ("  ", "  "),
    };
    let rest = if rest.is_empty() { String::new() } else { format!("{second}{rest}") };
    writeln!(writer, "{place}{first}{style}{verdict}{style:#}{rest}")
}

fn beside(writer: &mut Screen<impl Write>, row: &Row, columns: &Columns) -> io::Result<()> {
    let mut head = String::new();
    for (text, column) in [(&row.phase, columns.phase), (&row.place, columns.place), (&row.purpose, columns.purpose)] {
        if column > 0 {
            head.push_str(&padded(text, column));
        }
    }
    let (style, verdict, rest) = (row.style, &row.verdict, escape(&row.rest));
    let pad = if rest.is_empty() { 0 } else { columns.verdict.saturating_sub(display_width(verdict)).max(2) };
    let indent = display_width(&head) + display_width(verdict) + pad;
    let words = screen::under(&rest, writer.width(), indent);
    // It is broken already, under itself.
    writeln!(writer.unbroken(), "{head}{style}{verdict}{style:#}{}{words}", " ".repeat(pad))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(place: &str, rest: &str) -> Row {
        Row {
            phase: "install".to_owned(),
            place: place.to_owned(),
            purpose: "signing keys".to_owned(),
            style: Style::new(),
            verdict: "BLOCKED v4 v6".to_owned(),
            rest: rest.to_owned(),
        }
    }

    fn written(rows: &[Row], width: fn() -> Option<usize>) -> String {
        let mut screen = Screen::new(Vec::new(), width);
        write(&mut screen, rows).unwrap();
        String::from_utf8(screen.unbroken().clone()).unwrap()
    }

    #[test]
    fn columns_go_by_importance() {
        let rows = [row("keys.example.com:443", "ufw rule 1 `deny out 443/tcp`")];
        let whole = "install  keys.example.com:443  signing keys  BLOCKED v4 v6  ufw rule 1 `deny out 443/tcp`\n";
        assert_eq!(written(&rows, || None), whole);
        assert_eq!(written(&rows, || Some(100)), whole);
        let phase = "install  keys.example.com:443  BLOCKED v4 v6  ufw rule 1\n";
        assert!(written(&rows, || Some(72)).starts_with(phase), "{}", written(&rows, || Some(72)));
        assert!(written(&rows, || Some(64)).starts_with("keys.example.com:443  BLOCKED v4 v6  ufw rule 1\n"));
        assert_eq!(
            written(&rows, || Some(40)),
            "keys.example.com:443  BLOCKED v4 v6\n    ufw rule 1 `deny out 443/tcp`\n"
        );
    }

    #[test]
    fn one_long_name_does_not_cost_the_table() {
        let mut rows: Vec<Row> = (0..8).map(|_| row("a.example.com:443", "ufw rule 1 `deny out 443/tcp`")).collect();
        rows.push(row("a-name-that-is-longer-than-all-others.example.com:443", "ufw rule 1"));
        let text = written(&rows, || Some(80));
        assert!(text.lines().next().unwrap().contains("BLOCKED v4 v6  ufw rule 1"), "{text}");
        assert!(text.lines().all(|line| display_width(line) <= 80), "{text}");
    }

    #[test]
    fn a_long_name_in_a_pipe_keeps_all_columns() {
        let rows = [row(&"x".repeat(MAX_COLUMN + 9), "ufw rule 1")];
        let text = written(&rows, || None);
        assert!(
            text.starts_with("install  x") && text.ends_with("x  signing keys  BLOCKED v4 v6  ufw rule 1\n"),
            "{text}"
        );
    }
}
