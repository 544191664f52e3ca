//! Text from outside in Markdown: nothing of it becomes markup, and it reads well raw.

use super::escape::escape;

/// Text from outside in a table's cell or a heading: nothing of it is markup, and it reads well raw. Words that could be markup, and
/// what stands between backticks, are code spans.
pub(super) fn cell(text: &str) -> String {
    let escaped = escape(text);
    let parts: Vec<&str> = escaped.split('`').collect();
    let is_paired = parts.len() % 2 == 1;
    let mut plain = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        if is_paired && index % 2 == 1 {
            push_code(&mut plain, part);
            continue;
        }
        for (index, word) in part.split(' ').enumerate() {
            if index > 0 {
                plain.push(' ');
            }
            if is_plain(word) { plain.push_str(word) } else { push_code(&mut plain, word) }
        }
    }
    plain
}

/// The same of a command line, as one piece of code.
pub(super) fn command_cell(text: &str) -> String {
    let mut code = String::new();
    push_code(&mut code, &escape(text));
    code
}

/// Adds a code span.
fn push_code(text: &mut String, code: &str) {
    if code.trim().is_empty() {
        return;
    }
    // Two spans side by side would be one.
    if text.ends_with('`') {
        text.push(' ');
    }
    let code = code.replace('|', "\\|");
    // A backtick inside takes a longer fence.
    text.push_str(&if code.contains('`') { format!("`` {code} ``") } else { format!("`{code}`") });
}

/// Nothing of it is markup, a link or a mention.
fn is_plain(text: &str) -> bool {
    let is_harmless = |character: char| {
        !character.is_ascii() || character.is_ascii_alphanumeric() || " .,:;-=%()'/+\"?×".contains(character)
    };
    text.chars().all(is_harmless) && !text.contains("://") && !text.to_ascii_lowercase().contains("www.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_becomes_markup() {
        for (text, wanted) in [
            ("<i>*x*", "`<i>*x*`"),
            ("ufw rule 1 `deny out 443/tcp`", "ufw rule 1 `deny out 443/tcp`"),
            ("opens `a|b` to *all*, later", "opens `a\\|b` to `*all*,` later"),
            ("an odd ` one", "an odd  one"),
            ("[x](y) `a``b`", "`[x](y)` `a` `b`"),
            ("curl[7] could not reach it", "`curl[7]` could not reach it"),
            ("see https://example.com", "see `https://example.com`"),
            ("mail @all", "mail `@all`"),
        ] {
            assert_eq!(cell(text), wanted);
        }
    }
}
