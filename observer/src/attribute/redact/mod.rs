//! Masks secrets in command lines before they go anywhere. Pure.
//!
//! Masked: the value of an option, a `NAME=value`, a header, a JSON member or a query parameter whose name says key,
//! token, secret, password, credential or cookie; passwords in URLs and in `user:password` arguments; the options and
//! words with which common programs take one; what a script pipes to a program that reads one; words in the form of
//! well-known keys. In doubt it masks: a value too many hidden costs a look at `ps`, one too few shown costs a key. The
//! program and where it connects to stay.
//!
//! [`redact`] first masks known forms (`formats`) in each argument, then reads the arguments as a command line (`line`)
//! in the light of a table of programs (`programs`). `word` masks inside one argument. It may hold a script (`script`)
//! with command lines of its own, an address (`address`) or names with values (`scan`, `names`).
//!
//! The arguments are a stranger's. The work grows as their length does, and what nests is followed some levels deep and
//! masked beyond.

mod address;
mod formats;
mod line;
mod names;
mod programs;
mod scan;
mod script;
mod word;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod shapes_tests;
#[cfg(test)]
mod tests;

/// Stands for a secret.
pub const MASK: &str = "***";

/// Levels of quotes and assignments that are followed.
const MAX_DEPTH: usize = 8;

/// The arguments with every secret masked.
pub fn redact(args: &[String]) -> Vec<String> {
    let git = args.iter().any(|arg| programs::name(arg) == "git");
    let args: Vec<String> = args.iter().map(|arg| known(arg, git)).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    line::mask(&words, 0)
}

/// Masks what is recognised by its form.
fn known(arg: &str, git: bool) -> String {
    // Quotes escaped so often are in quotes in quotes, deeper than is followed.
    let escapes = arg.split(|sign| sign != '\\').map(str::len).max().unwrap_or_default();
    if escapes > script::MAX_ESCAPES { MASK.to_owned() } else { formats::mask(arg, git) }
}
