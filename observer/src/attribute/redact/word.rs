//! Masks inside one word: an argument, or a whole script.

use super::{MASK, MAX_DEPTH, address, line, names, scan, script};

/// One word, so deep inside an argument.
pub(super) fn mask(text: &str, depth: usize) -> String {
    if depth > MAX_DEPTH {
        // Nobody nests as deep but to hide.
        return if text.contains(['"', '\'']) || spreads(text) { MASK.to_owned() } else { flat(text) };
    }
    if let Some((open, inside, close)) = script::unquoted(text) {
        return format!("{open}{}{close}", mask(inside, depth + 1));
    }
    if let Some(masked) = header(text) {
        return masked;
    }
    // An attached header: `-HName: value`.
    if let Some(header) = text.strip_prefix("-H").filter(|header| !header.is_empty()) {
        return format!("-H{}", mask(header, depth + 1));
    }
    // An option is one word, whatever its value holds; `NAME=value command` is a script.
    if let Some((name, value)) = assignment(text).filter(|_| text.starts_with('-') || !spreads(text)) {
        return if names::is_secret(name) && !value.is_empty() {
            format!("{name}={}", requoted(value))
        } else if let Some(masked) = address::user(value, &[':']).filter(|_| names::is_login(name)) {
            format!("{name}={masked}")
        } else {
            format!("{name}={}", mask(value, depth + 1))
        };
    }
    if spreads(text) {
        // A password with a blank.
        let url = text.split_once("://").filter(|(scheme, _)| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        if let Some((scheme, rest)) = url.filter(|(_, rest)| !rest[..blank(rest)].contains(['@', '/'])) {
            return format!("{scheme}://{}", address::login(rest));
        }
        return script(text, depth);
    }
    if let Some((start, password)) =
        text.split_once("pass:").filter(|(start, rest)| start.is_empty() && !rest.is_empty())
    {
        return format!("{start}pass:{}", if password == MASK { password } else { MASK });
    }
    // QEMU's `secret,id=x,data=y`.
    if let Some((start, _)) = text.split_once("data=").filter(|_| text.starts_with("secret,")) {
        return format!("{start}data={MASK}");
    }
    // An attached short option: `-ubob:password`.
    if let Some(masked) = text.strip_prefix("-u").and_then(|value| address::user(value, &[':'])) {
        return format!("-u{masked}");
    }
    if let Some(masked) = address::bare_login(text) {
        return masked;
    }
    flat(&parts(text, depth))
}

/// `name=value`
pub(super) fn assignment(text: &str) -> Option<(&str, &str)> {
    let (name, value) = text.split_once('=')?;
    let plain = name.trim_start_matches('-');
    let starts = plain.starts_with(|sign: char| sign.is_ascii_alphabetic() || sign == '_');
    let named = plain.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    (starts && named).then_some((name, value))
}

/// Several words in one, as in `sh -c '…'`; a body of JSON is none.
pub(super) fn spreads(text: &str) -> bool {
    let trimmed = text.trim();
    let inside = trimmed.strip_prefix(['{', '[']).map(str::trim_start);
    let json = inside.is_some_and(|inside| inside.starts_with(['"', '\'', '\\', '{', '[', ']', '}']));
    !json && trimmed.contains(char::is_whitespace) && script::words(trimmed).len() > 1
}

/// Where the first blank is.
fn blank(text: &str) -> usize {
    text.find(char::is_whitespace).unwrap_or(text.len())
}

/// Stands for a value, in the quotes that it had.
fn requoted(value: &str) -> String {
    script::unquoted(value).map_or_else(|| MASK.to_owned(), |(open, _, close)| format!("{open}{MASK}{close}"))
}

/// Each word by itself, what stands between them as it is.
fn script(text: &str, depth: usize) -> String {
    let found = script::words(text);
    let quoted: Vec<_> = found.iter().map(|word| script::unquoted(&text[word.clone()])).collect();
    let words: Vec<&str> = found
        .iter()
        .zip(&quoted)
        .map(|(word, quoted)| quoted.map_or(&text[word.clone()], |(_, inside, _)| inside))
        .collect();
    let masked = line::mask(&words, depth);
    let (mut whole, mut end) = (String::with_capacity(text.len()), 0);
    for ((word, quoted), masked) in found.into_iter().zip(quoted).zip(masked) {
        whole.push_str(&text[end..word.start]);
        let (open, _, close) = quoted.unwrap_or_default();
        whole.extend([open, &masked, close]);
        end = word.end;
    }
    whole.push_str(&text[end..]);
    flat(&whole)
}

/// The quoted parts of a word that are scripts of their own, or JSON in JSON.
fn parts(text: &str, depth: usize) -> String {
    let bytes = text.as_bytes();
    let mut quotes = script::Quotes::default();
    let (mut whole, mut copied, mut at) = (String::new(), 0, 0);
    while at < bytes.len() {
        let Some((escapes, _)) = script::opening(bytes, at) else {
            at += 1;
            continue;
        };
        let Some((close, end)) = quotes.part(bytes, at) else {
            at += escapes + 1;
            continue;
        };
        let inside = at + escapes + 1..close;
        if text[inside.clone()].contains(|sign: char| sign.is_whitespace() || "\"'@=".contains(sign)) {
            whole.push_str(&text[copied..inside.start]);
            whole.push_str(&mask(&text[inside.clone()], depth + 1));
            copied = inside.end;
        }
        at = end;
    }
    whole.push_str(&text[copied..]);
    whole
}

/// What can be reported without words: addresses, and names with values.
fn flat(text: &str) -> String {
    let text = address::urls(text);
    scan::mask(&address::driver(&text).unwrap_or(text))
}

/// A header whose name says so: `Name: value`.
fn header(text: &str) -> Option<String> {
    let (name, rest) = text.split_once(':')?;
    let starts = name.starts_with(|sign: char| sign.is_ascii_alphabetic());
    if !starts || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
        return None;
    }
    let value = rest.trim_start();
    let gap = &rest[..rest.len() - value.len()];
    if value.is_empty() || value.starts_with("//") {
        return None;
    }
    if names::is_header(name) {
        let scheme = value.split_once(' ').map(|(scheme, _)| scheme);
        let scheme = scheme.filter(|scheme| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
        return Some(match scheme {
            Some(scheme) => format!("{name}:{gap}{scheme} {MASK}"),
            None => format!("{name}:{gap}{MASK}"),
        });
    }
    // `name:443` is a host.
    let port =
        gap.is_empty() && value.split('/').next().is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    // What has more lines has more names.
    (names::is_secret(name) && !port && !value.contains('\n')).then(|| format!("{name}:{gap}{MASK}"))
}
