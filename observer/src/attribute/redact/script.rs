//! Takes a script, as after `sh -c`, apart into its words.

use std::ops::Range;

/// Backslashes before a quote that are told apart.
pub(super) const MAX_ESCAPES: usize = 31;
/// Signs that stand by themselves, the longer ones first.
const SIGNS: [&str; 16] = ["<<<", "&&", "||", "|&", ";;", "<(", ">(", "$(", "<<", ">>", "|", ";", "(", ")", "`", "&"];

/// The words of a script and the signs between them. A quoted part belongs to its word.
pub(super) fn words(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let mut quotes = Quotes::default();
    let (mut words, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        if let Some(length) = blank(text, at) {
            if bytes[at] == b'\n' {
                words.push(at..at + 1);
            }
            at += length;
            continue;
        }
        if let Some(length) = sign(bytes, at) {
            words.push(at..at + length);
            at += length;
            continue;
        }
        let start = at;
        while at < bytes.len() && blank(text, at).is_none() && (at == start || sign(bytes, at).is_none()) {
            at = match quotes.part(bytes, at) {
                Some((_, end)) => end,
                // What a backslash protects belongs to the word.
                None if bytes[at] == b'\\' => at + 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
                None => at + text[at..].chars().next().map_or(1, char::len_utf8),
            };
        }
        words.push(start..at);
    }
    words
}

/// The word ends a command.
pub(super) fn ends_command(word: &str) -> bool {
    matches!(word, "|" | "|&" | "||" | "&&" | "&" | ";" | ";;" | "(" | ")" | "`" | "$(" | "<(" | ">(" | "\n")
}

/// The word is a sign and nothing to mask.
pub(super) fn is_sign(word: &str) -> bool {
    word == "\n" || matches!(word, "<" | ">" | "2>") || SIGNS.contains(&word)
}

/// Opening quote, inside and closing quote of a text that is quoted as a whole. Quotes may be escaped.
pub(super) fn unquoted(text: &str) -> Option<(&str, &str, &str)> {
    let bytes = text.as_bytes();
    // Bash's `$'x'`.
    let dollar = usize::from(text.starts_with("$'") || text.starts_with("$\""));
    let (escapes, _) = opening(bytes, dollar)?;
    let open = dollar + escapes + 1;
    let (inside, end) = Quotes::default().part(bytes, dollar)?;
    (end == bytes.len()).then(|| (&text[..open], &text[open..inside], &text[inside..]))
}

/// Length of the blank at this place.
fn blank(text: &str, at: usize) -> Option<usize> {
    let first = text.as_bytes()[at];
    if first.is_ascii() {
        return first.is_ascii_whitespace().then_some(1);
    }
    text[at..].chars().next().filter(|sign| sign.is_whitespace()).map(char::len_utf8)
}

/// Length of the sign at this place. The `&` of a redirection is none.
fn sign(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let found = SIGNS.iter().find(|sign| rest.starts_with(sign.as_bytes()))?;
    let redirects = *found == "&" && (at > 0 && bytes[at - 1] == b'>' || rest.get(1) == Some(&b'>'));
    (!redirects).then_some(found.len())
}

/// Finds quoted parts. It keeps in mind which quotes are not closed any more, so that each is looked for once.
#[derive(Default)]
pub(super) struct Quotes {
    open: [[bool; MAX_ESCAPES + 1]; 2],
}

impl Quotes {
    /// Where the quoted part that starts at this place closes, and where it ends, if one does start.
    pub(super) fn part(&mut self, bytes: &[u8], at: usize) -> Option<(usize, usize)> {
        let (escapes, quote) = opening(bytes, at)?;
        let open = &mut self.open[usize::from(quote == b'"')][escapes];
        if *open {
            return None;
        }
        let mut count = 0;
        for (index, byte) in bytes.iter().enumerate().skip(at + escapes + 1) {
            if *byte == quote && closes(quote, escapes, count) {
                return Some((index - count.min(escapes), index + 1));
            }
            count = if *byte == b'\\' { count + 1 } else { 0 };
        }
        *open = true;
        None
    }
}

/// Backslashes and quote at this place.
pub(super) fn opening(bytes: &[u8], at: usize) -> Option<(usize, u8)> {
    let escapes = bytes[at..].iter().take(MAX_ESCAPES + 1).take_while(|byte| **byte == b'\\').count();
    let quote = *bytes.get(at + escapes)?;
    (matches!(quote, b'"' | b'\'') && escapes <= MAX_ESCAPES).then_some((escapes, quote))
}

/// A quote behind so many backslashes closes one that was opened behind `escapes` of them.
pub(super) fn closes(quote: u8, escapes: usize, count: usize) -> bool {
    match escapes {
        0 => quote == b'\'' && count == 0 || count.is_multiple_of(2),
        _ => count <= escapes,
    }
}
