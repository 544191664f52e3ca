//! Lines on a terminal: broken between words, never inside one, and continued under the text that they belong to.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
};

use rustix::termios::tcgetwinsize;
use textwrap::{Options, WordSeparator, WordSplitter, WrapAlgorithm, core::Word, wrap};

/// A label is at most this wide; behind it the text of its lines continues.
const MAX_LABEL: usize = 20;
/// Columns by which a line continues that has no label, or for which the terminal is too narrow.
const INDENT: usize = 6;
/// Labels of commands: what is copied must be the same command, so that a row ends with a backslash where it goes on.
const COMMANDS: [&str; 5] = ["fix", "undo", "run", "or", "and"];

/// How a notice begins that has a command.
const FIX: &str = "observer: fix (";
/// How a row of a command ends that goes on in the next one.
const CONTINUED: &str = " \\";

/// Columns of a terminal, as wide as it is now; `None` for a file or a pipe, whose lines have no end.
pub fn width_of(output: &(impl AsFd + IsTerminal)) -> Option<usize> {
    let size = output.is_terminal().then(|| tcgetwinsize(output).ok()).flatten()?;
    (size.ws_col > 0).then(|| size.ws_col.into())
}

/// Columns of stdout.
pub fn stdout_width() -> Option<usize> {
    width_of(&io::stdout())
}

/// For documents and programs: no line is broken.
pub fn unlimited() -> Option<usize> {
    None
}

/// Columns of stderr.
pub fn stderr_width() -> Option<usize> {
    width_of(&io::stderr())
}

/// Breaks the lines that are written to it.
pub struct Screen<W> {
    writer: W,
    width: fn() -> Option<usize>,
    /// Text of a line whose end has not come.
    line: Vec<u8>,
}

impl<W: Write> Screen<W> {
    /// `width` is asked at each line: a terminal's size may change.
    pub fn new(writer: W, width: fn() -> Option<usize>) -> Self {
        Self { writer, width, line: Vec::new() }
    }

    /// The writer below, for cursor movements and for rows that are broken already.
    pub fn unbroken(&mut self) -> &mut W {
        &mut self.writer
    }

    /// Columns of a line now.
    pub fn width(&self) -> Option<usize> {
        (self.width)()
    }
}

impl<W: Write> Write for Screen<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                match (self.width()).zip(std::str::from_utf8(&line).ok()) {
                    Some((width, text)) => {
                        for row in broken(text.trim_end_matches('\n'), width) {
                            self.writer.write_all(row.as_bytes())?;
                            self.writer.write_all(b"\n")?;
                        }
                    }
                    None => self.writer.write_all(&line)?,
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.line);
        self.writer.write_all(&rest)?;
        self.writer.flush()
    }
}

/// The rows of a line.
fn broken(line: &str, width: usize) -> Vec<String> {
    if textwrap::core::display_width(line) <= width {
        return vec![line.to_owned()];
    }
    let plain = anstream::adapter::strip_str(line).to_string();
    let indent = match label(&plain) {
        Some(columns) if columns * 3 <= width => columns,
        _ => INDENT.min(width / 4),
    };
    let indent = " ".repeat(indent);
    let first = plain.trim_start().split(' ').next().unwrap_or_default();
    if plain.starts_with(' ') && COMMANDS.contains(&first) || plain.starts_with(FIX) {
        // A command consists of words that observer chose.
        let options = options(width.saturating_sub(CONTINUED.len()), &indent);
        let rows = wrap(line, options.word_separator(WordSeparator::Custom(shell_words)));
        let last = rows.len().saturating_sub(1);
        let ended =
            |(at, row): (usize, Cow<'_, str>)| if at < last { format!("{row}{CONTINUED}") } else { row.into_owned() };
        return rows.into_iter().enumerate().map(ended).collect();
    }
    let rows = wrap(line, options(width, &indent).word_separator(separator(&plain, width, indent.len())));
    rows.iter().flat_map(|row| cut(row, width, &indent)).collect()
}

/// A row that is longer than the terminal is wide, as several: whoever chose a long word must not begin a row of his own with it.
fn cut(row: &str, width: usize, indent: &str) -> Vec<String> {
    if textwrap::core::display_width(row) <= width {
        return vec![row.to_owned()];
    }
    let text = row.trim_start();
    let first = &row[..row.len() - text.len()];
    let columns = width.saturating_sub(first.len().max(indent.len())).max(1);
    let parts = Word::from(text).break_apart(columns).map(|part| part.word.to_owned()).collect::<Vec<_>>();
    let row = |(at, part): (usize, String)| format!("{}{part}", if at == 0 { first } else { indent });
    parts.into_iter().enumerate().map(row).collect()
}

/// What stands between backticks is one word, where it fits into a row.
fn separator(plain: &str, width: usize, indent: usize) -> WordSeparator {
    let quoted = plain.split('`').skip(1).step_by(2);
    let longest = quoted.map(textwrap::core::display_width).max().unwrap_or(0) + 2;
    WordSeparator::Custom(if indent + longest <= width { words } else { any_words })
}

/// Text that begins behind so many columns of its row and continues under itself.
pub(super) fn under(text: &str, width: Option<usize>, columns: usize) -> String {
    let Some(width) = width else { return text.to_owned() };
    let indent = " ".repeat(columns);
    let first = options(width, &indent).initial_indent(&indent).word_separator(separator(text, width, columns));
    let rows = wrap(text, first);
    let rows: Vec<String> = rows.iter().flat_map(|row| cut(row, width, &indent)).collect();
    rows.join("\n").trim_start().to_owned()
}

fn options(width: usize, indent: &str) -> Options<'_> {
    Options::new(width)
        .subsequent_indent(indent)
        .break_words(false)
        .word_splitter(WordSplitter::NoHyphenation)
        .word_separator(WordSeparator::Custom(words))
        .wrap_algorithm(WrapAlgorithm::FirstFit)
}

/// Columns before the text of a line that begins with a label: what two spaces or more set apart.
fn label(plain: &str) -> Option<usize> {
    let start = plain.len() - plain.trim_start().len();
    let gap = plain.get(start..)?.find("  ").map(|at| start + at);
    let end = match gap {
        Some(gap) => gap + plain.get(gap..)?.chars().take_while(|character| *character == ' ').count(),
        // Nothing but the text, which is set in.
        None => start,
    };
    let columns = textwrap::core::display_width(plain.get(..end)?);
    // A gap far behind is none of a label's.
    let columns = if columns > MAX_LABEL { start } else { columns };
    (1..=MAX_LABEL).contains(&columns).then_some(columns)
}

/// Words: between spaces, and what stands between backticks is one.
fn words(line: &str) -> Box<dyn Iterator<Item = Word<'_>> + '_> {
    split(line, &['`'])
}

/// Words: between spaces.
fn any_words(line: &str) -> Box<dyn Iterator<Item = Word<'_>> + '_> {
    split(line, &[])
}

/// Words of a shell's line: what stands between quotes is one.
fn shell_words(line: &str) -> Box<dyn Iterator<Item = Word<'_>> + '_> {
    split(line, &['\'', '"'])
}

/// Words between spaces that do not stand between two of these.
fn split<'a>(line: &'a str, quotes: &[char]) -> Box<dyn Iterator<Item = Word<'a>> + 'a> {
    let mut words = Vec::new();
    let (mut start, mut quote, mut is_space, mut is_escaped) = (0, None, false, false);
    for (at, character) in line.char_indices() {
        if is_space && character != ' ' && quote.is_none() {
            words.push(Word::from(&line[start..at]));
            start = at;
        }
        match quote {
            _ if std::mem::take(&mut is_escaped) => {}
            Some('"') | None if character == '\\' => is_escaped = true,
            None if quotes.contains(&character) && line[at + 1..].contains(character) => quote = Some(character),
            Some(open) if open == character => quote = None,
            _ => {}
        }
        is_space = character == ' ';
    }
    words.push(Word::from(&line[start..]));
    Box::new(words.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(line: &str, width: usize) -> Vec<String> {
        broken(line, width)
    }

    #[test]
    fn lines_continue_under_their_text() {
        assert_eq!(rows("  by    a rule dropped it", 40), ["  by    a rule dropped it"]);
        assert_eq!(
            rows("  by    ufw rule 1 `deny out 443/tcp`, which drops it", 34),
            ["  by    ufw rule 1", "        `deny out 443/tcp`, which", "        drops it"]
        );
        assert_eq!(rows("one two three", 9), ["one two", "  three"]);
    }

    #[test]
    fn a_word_is_cut_only_where_it_is_longer_than_a_row() {
        assert_eq!(
            rows("to [2001:db8:1111:2222:3333:4444:5555:6666]:443/tcp", 48),
            ["to", "      [2001:db8:1111:2222:3333:4444:5555:6666]:4", "      43/tcp"]
        );
    }

    #[test]
    fn nobody_begins_a_row_of_his_own() {
        let forged = "run   sudo sh -c evil";
        for text in [
            format!("{}{forged}", "x".repeat(90)),
            format!("`{}  {forged}`", "x".repeat(85)),
            format!("{} `{forged}", "x".repeat(300)),
        ] {
            for width in [20, 46, 80, 100] {
                for row in rows(&format!("  by    {text}"), width).iter().skip(1) {
                    let fits = textwrap::core::display_width(row) <= width;
                    assert!(row.starts_with("    ") && fits, "{row:?} of {text:?} in {width} columns");
                }
            }
        }
    }

    #[test]
    fn a_command_goes_on_behind_a_backslash() {
        let line = "  fix   sudo ufw insert 1 allow out 443/tcp comment 'a b c'";
        let rows = rows(line, 34);
        assert_eq!(rows, ["  fix   sudo ufw insert 1 allow \\", "        out 443/tcp comment \\", "        'a b c'"]);
        // A shell reads the same words.
        let read = |text: &str| {
            let script = format!("sudo() {{ printf '%s|' \"$@\"; }}; {text}");
            std::process::Command::new("sh").args(["-c", &script]).output().unwrap().stdout
        };
        assert_eq!(read(&rows.join("\n")[8..]), b"ufw|insert|1|allow|out|443/tcp|comment|a b c|");
    }

    #[test]
    fn styles_take_no_columns() {
        let line = "\u{1b}[1mone\u{1b}[0m \u{1b}[2mtwo\u{1b}[0m";
        assert_eq!(rows(line, 7), [line]);
        assert_eq!(rows(line, 5).len(), 2);
    }

    #[test]
    fn lines_are_broken_however_they_are_written() {
        let mut screen = Screen::new(Vec::new(), || Some(9));
        for part in ["one t", "wo thr", "ee\nfour\nfi"] {
            screen.write_all(part.as_bytes()).unwrap();
        }
        screen.flush().unwrap();
        assert_eq!(String::from_utf8(screen.writer).unwrap(), "one two\n  three\nfour\nfi");
    }
}
