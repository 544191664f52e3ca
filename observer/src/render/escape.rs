//! Text from outside, made harmless for a terminal.
//!
//! Process names, arguments, units and the like are chosen by whoever runs them. Control characters could move the cursor
//! or colour the screen, newlines could forge lines of this program, bidirectional and invisible marks could make one name
//! read as another.

use std::{borrow::Cow, fmt::Write};

/// Marks that reorder or hide text.
fn is_treacherous(character: char) -> bool {
    matches!(character,
        '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' | '\u{00ad}'
        // Blanks that are none to who splits at spaces, and what is shown as nothing.
        | '\u{00a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' | '\u{2800}'
        | '\u{180b}'..='\u{180f}' | '\u{17b4}' | '\u{17b5}' | '\u{1d173}'..='\u{1d17a}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{034f}' | '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}')
}

/// True for a character that is never shown as it is.
pub fn must_escape(character: char) -> bool {
    character.is_control() || is_treacherous(character)
}

/// The text with every dangerous character as `\n`, `\x1b` or `\u{202e}`.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(must_escape) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            other if must_escape(other) && (other as u32) < 0x100 => {
                let _ = write!(escaped, "\\x{:02x}", other as u32);
            }
            other if must_escape(other) => {
                let _ = write!(escaped, "\\u{{{:x}}}", other as u32);
            }
            other => escaped.push(other),
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dangerous_characters_become_visible() {
        assert_eq!(escape("curl"), "curl");
        assert_eq!(escape("a\nb\x1b[31m"), "a\\nb\\x1b[31m");
        assert_eq!(escape("\u{202e}gnp.exe"), "\\u{202e}gnp.exe");
        assert_eq!(escape("größe 日本"), "größe 日本");
        assert_eq!(escape("\u{9b}1m"), "\\x9b1m");
    }

    proptest! {
        #[test]
        fn nothing_dangerous_is_left(text in any::<String>()) {
            prop_assert!(!escape(&text).chars().any(must_escape));
        }
    }
}
