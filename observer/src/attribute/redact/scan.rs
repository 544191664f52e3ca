//! Names and values inside a text: `name=value`, `name: value`, JSON members, query parameters, SQL, calls.

use super::{
    MASK, address, names,
    script::{closes, opening},
};

/// Bytes between a call's parentheses that are looked at.
const CALL: usize = 512;
/// Bytes of a login that are looked at.
const LOGIN: usize = 256;

/// Masks each value whose name promises a secret.
pub(super) fn mask(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut whole, mut copied, mut at) = (String::new(), 0, 0);
    let mut last = "";
    while at < bytes.len() {
        if !(bytes[at].is_ascii_alphabetic() || bytes[at] == b'_') {
            at += 1;
            continue;
        }
        let end = at + bytes[at..].iter().take_while(|byte| is_name_byte(**byte)).count();
        let name = &text[at..end];
        let in_query = at > 0 && matches!(bytes[at - 1], b'?' | b'&');
        if let Some(value) = value(text, name, last, end, in_query) {
            whole.push_str(&text[copied..value.start]);
            whole.push_str(&value.masked);
            copied = value.end;
            at = value.end.max(end);
        } else {
            at = end;
        }
        last = name;
    }
    whole.push_str(&text[copied..]);
    whole
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')
}

/// What stands where a secret did.
struct Value {
    start: usize,
    end: usize,
    masked: String,
}

/// The value after a name, if it is to be masked.
fn value(text: &str, name: &str, last: &str, end: usize, in_query: bool) -> Option<Value> {
    let bytes = text.as_bytes();
    let secret = if in_query { names::is_secret_parameter(name) } else { names::is_secret(name) };
    // SQL's `IDENTIFIED BY 'x'`, and `IDENTIFIED WITH plugin BY 'x'`.
    let orders = ["order", "group", "partition", "sort"].iter().any(|word| last.eq_ignore_ascii_case(word));
    let identified = name.eq_ignore_ascii_case("by") && !orders;
    if let Some(found) = call(text, name, end) {
        return Some(found);
    }
    if !secret && !identified && !names::is_login(name) {
        return None;
    }
    // `<password>x</password>`
    let before = end.checked_sub(name.len() + 1).map(|before| bytes[before]);
    if secret && before == Some(b'<') && bytes.get(end) == Some(&b'>') {
        let stop = text[end..].find('<').map_or(text.len(), |found| end + found);
        return Some(Value { start: end + 1, end: stop, masked: MASK.to_owned() });
    }
    let mut at = end;
    let quoted_name = opening(bytes, at);
    if let Some((escapes, _)) = quoted_name {
        at += escapes + 1;
    }
    if let Some(found) = encoded(text, at).filter(|_| secret) {
        return Some(found);
    }
    if bytes.get(at) == Some(&b']') {
        at += 1;
    }
    let bare = at == end;
    let named = at;
    at = skip_blanks(bytes, at);
    let sign = sign(bytes, at);
    let spaced = at > end && bare;
    at += sign;
    let colon = sign == 1 && bytes[at - 1] == b':';
    let gap = at;
    at = skip_blanks(bytes, at);
    if sign == 0 {
        if let Some(found) = paired(text, named).filter(|_| secret) {
            return Some(found);
        }
        // `define("PASSWORD", "x")`, `["--password", "x"]`
        if quoted_name.is_some() && secret && bytes.get(at) == Some(&b',') {
            let next = skip_blanks(bytes, at + 1);
            let (escapes, quote) = opening(bytes, next)?;
            let found = quoted(text, next, escapes, quote);
            // A member's name holds nothing.
            let after = skip_blanks(bytes, (found.end + escapes + 1).min(bytes.len()));
            return (bytes.get(after) != Some(&b':')).then_some(found);
        }
        // SQL's `PASSWORD 'x'` and `PASSWORD('x')`.
        let open = usize::from(bytes.get(at) == Some(&b'('));
        let at = at + usize::from(matches!(bytes.get(at), Some(b'E' | b'N')));
        let (escapes, quote) = opening(bytes, at + open)?;
        let sql = (spaced || open == 1) && bare && (identified || names::is_password(name));
        return if sql { Some(quoted(text, at + open, escapes, quote)) } else { None };
    }
    if colon && (bytes[at..].starts_with(b"//") || bytes.get(at) == Some(&b':')) {
        return None;
    }
    // A letter before the quote, as Python's `b'x'`.
    if bytes.get(at).is_some_and(u8::is_ascii_alphabetic) && matches!(bytes.get(at + 1), Some(b'"' | b'\'')) {
        at += 1;
    }
    if !secret {
        return login(text, at + opening(bytes, at).map_or(0, |(escapes, _)| escapes + 1));
    }
    if let Some((escapes, quote)) = opening(bytes, at) {
        return Some(quoted(text, at, escapes, quote));
    }
    match bytes.get(at)? {
        b'{' | b'(' => return None,
        b'[' => {
            let close = text[at..].find(']').map_or(text.len(), |found| at + found);
            return Some(Value { start: at + 1, end: close, masked: MASK.to_owned() });
        }
        _ => {}
    }
    if colon && names::is_header(name) {
        return Some(header(text, at));
    }
    let mut stop = bare_end(bytes, at, in_query);
    if names::is_scheme(&text[at..stop]) && bytes.get(stop) == Some(&b' ') {
        at = skip_blanks(bytes, stop);
        stop = bare_end(bytes, at, in_query);
    }
    // A login that is masked already has its host behind it.
    if stop == at || colon && text[at..].starts_with("***@") {
        return None;
    }
    // `name:443` is a host.
    let port = bytes[at..stop].iter().take_while(|byte| **byte != b'/').all(u8::is_ascii_digit);
    if colon && bare && gap == at && port {
        return None;
    }
    Some(Value { start: at, end: stop, masked: MASK.to_owned() })
}

/// The value of a name in a URL's encoding: `password%22%3A%22x%22`, `token%3Dx`.
fn encoded(text: &str, at: usize) -> Option<Value> {
    let bytes = text.as_bytes();
    let skip = |at: usize, codes: &[&str]| {
        let found = codes
            .iter()
            .find(|code| bytes[at..].get(..3).is_some_and(|next| next.eq_ignore_ascii_case(code.as_bytes())));
        at + found.map_or(0, |code| code.len())
    };
    let named = skip(at, &["%22", "%27"]);
    let mut start = skip(named, &["%3a", "%3d"]);
    if start == named {
        return None;
    }
    start = skip(skip(start, &["%20"]), &["%22", "%27"]);
    let end = bare_end(bytes, start, true);
    let codes = ["%22", "%27", "%26", "%2C", "%2c", "%7D", "%7d"];
    let coded = codes.iter().filter_map(|code| text[start..end].find(code)).min();
    let end = coded.map_or(end, |coded| start + coded);
    (end > start).then(|| Value { start, end, masked: MASK.to_owned() })
}

/// The value of a pair: `{"name": "TOKEN", "value": "x"}`, `Name=TOKEN,Value=x`, `name: TOKEN\n  value: x`.
fn paired(text: &str, at: usize) -> Option<Value> {
    let bytes = text.as_bytes();
    let blank = |at: usize| at + bytes[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let mut at = blank(at);
    if matches!(bytes.get(at), Some(b',' | b';')) {
        at = blank(at + 1);
    }
    let quoted_name = opening(bytes, at).map_or(0, |(escapes, _)| escapes + 1);
    at += quoted_name;
    let end = at + bytes[at..].iter().take(24).take_while(|byte| is_name_byte(**byte)).count();
    if !text[at..end].to_ascii_lowercase().ends_with("value") {
        return None;
    }
    at = end;
    if quoted_name > 0 {
        at += opening(bytes, at)?.0 + 1;
    }
    at = skip_blanks(bytes, at);
    let sign = sign(bytes, at);
    let start = skip_blanks(bytes, at + sign);
    if sign == 0 || start >= bytes.len() {
        return None;
    }
    if let Some((escapes, quote)) = opening(bytes, start) {
        return Some(quoted(text, start, escapes, quote));
    }
    let stop = bare_end(bytes, start, false);
    (stop > start).then(|| Value { start, end: stop, masked: MASK.to_owned() })
}

/// The `user:password` that starts here, if one does. No more is looked at than a login is long.
fn login(text: &str, start: usize) -> Option<Value> {
    let bytes = text.as_bytes();
    let end = bare_end(&bytes[..(start + LOGIN).min(bytes.len())], start.min(bytes.len()), false);
    address::user(text.get(start..end)?, &[':']).map(|masked| Value { start, end, masked })
}

/// The inside of quotes, up to where they close.
fn quoted(text: &str, at: usize, escapes: usize, quote: u8) -> Value {
    let start = at + escapes + 1;
    let mut count = 0;
    for (index, byte) in text.bytes().enumerate().skip(start) {
        if byte == quote && closes(quote, escapes, count) {
            // The backslashes before the closing quote are its own.
            return kept_scheme(text, start, index - count.min(escapes));
        }
        count = if byte == b'\\' { count + 1 } else { 0 };
    }
    kept_scheme(text, start, text.len())
}

/// The value of a header: up to a quote or the end of its line.
fn header(text: &str, at: usize) -> Value {
    let end = text[at..].find(['"', '\'', '\n', '\r', '\\']).map_or(text.len(), |found| at + found);
    kept_scheme(text, at, end)
}

/// The masked value; a scheme before it stays.
fn kept_scheme(text: &str, start: usize, end: usize) -> Value {
    let end = end.max(start);
    let masked = match text[start..end].split_once(' ') {
        Some((scheme, _)) if names::is_scheme(scheme) => format!("{scheme} {MASK}"),
        _ if start == end => String::new(),
        _ => MASK.to_owned(),
    };
    Value { start, end, masked }
}

/// `login("user", "password")`: all behind the first comma, or all. `connect("host", "user", "password")`: the last.
fn call(text: &str, name: &str, end: usize) -> Option<Value> {
    let bytes = text.as_bytes();
    let mut at = end + usize::from(bytes.get(end) == Some(&b'='));
    if bytes.get(at) != Some(&b'(') {
        return None;
    }
    let (login, connect) = (names::is_call(name), names::is_connect(name));
    if !login && !connect {
        return None;
    }
    at += 1;
    let inside = &bytes[at..(at + CALL).min(bytes.len())];
    let close = inside.iter().position(|byte| *byte == b')').unwrap_or(inside.len());
    let mut commas = inside[..close].iter().enumerate().filter(|(_, byte)| **byte == b',').map(|(comma, _)| comma + 1);
    let start = match (login, commas.clone().count()) {
        (true, _) => commas.next().unwrap_or(0),
        (false, 2..) => commas.next_back()?,
        _ => return None,
    };
    let argument = &inside[start..close];
    let quoted =
        argument.iter().find(|byte| !byte.is_ascii_whitespace()).is_some_and(|byte| matches!(byte, b'"' | b'\''));
    let mut stop = at + close;
    while !text.is_char_boundary(stop) {
        stop += 1;
    }
    let has_text = quoted || login && argument.iter().any(|byte| matches!(byte, b'"' | b'\''));
    has_text.then(|| Value { start: at + start, end: stop, masked: MASK.to_owned() })
}

fn skip_blanks(bytes: &[u8], at: usize) -> usize {
    at + bytes[at..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count()
}

/// Length of what stands between a name and its value.
fn sign(bytes: &[u8], at: usize) -> usize {
    ["==", ":=", "=>", "=", ":"]
        .iter()
        .find(|sign| bytes[at..].starts_with(sign.as_bytes()))
        .map_or(0, |sign| sign.len())
}

/// Where a value without quotes ends.
fn bare_end(bytes: &[u8], at: usize, in_query: bool) -> usize {
    let ends = |byte: &u8| byte.is_ascii_whitespace() || b",;&\"'`)}]|<>".contains(byte) || *byte == b'#' && in_query;
    at + bytes[at..].iter().take_while(|byte| !ends(byte)).count()
}
