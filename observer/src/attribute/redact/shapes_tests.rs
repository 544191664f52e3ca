//! Tables of command lines: what is masked in each, and those that stay as they are.

use super::{MASK, redact};

/// Lines with secrets.
const SHAPES: [&str; 3] =
    [include_str!("shapes.txt"), include_str!("more_shapes.txt"), include_str!("last_shapes.txt")];
/// Lines without.
const PLAIN: &str = include_str!("plain.txt");
/// Stands in the tables where a secret does.
const SECRET: &str = "S3CR3T";
/// What `§` stands for. Keys are put together here, so that none is in a file.
const BODY: &str = "0123456789abcdefghijABCDEFGHIJ0123456789";

/// Lines of a table.
fn lines(table: &str) -> impl Iterator<Item = &str> {
    table.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Arguments of a line.
fn arguments(line: &str) -> Vec<String> {
    let words = shlex::split(line).unwrap_or_else(|| panic!("no command line: {line}"));
    words.iter().map(|word| word.replace("\\n", "\n").replace('§', BODY)).collect()
}

/// The argument as it is, and as it must become. Beside both the secrets in it.
fn case(word: &str) -> (String, String, Vec<String>) {
    let marked = word.replace(SECRET, "⟦S3CR3T⟧");
    let (mut given, mut wanted, mut secrets) = (String::new(), String::new(), Vec::new());
    let mut rest = marked.as_str();
    while let Some((before, after)) = rest.split_once('⟦') {
        // A marked part may have the secret's mark within it.
        let (mut depth, mut end) = (1, 0);
        for (at, sign) in after.char_indices() {
            depth += i32::from(sign == '⟦') - i32::from(sign == '⟧');
            if depth == 0 {
                end = at;
                break;
            }
        }
        let secret = after[..end].replace(['⟦', '⟧'], "");
        given += &format!("{before}{secret}");
        wanted += &format!("{before}{MASK}");
        secrets.push(secret);
        rest = &after[end + '⟧'.len_utf8()..];
    }
    (given + rest, wanted + rest, secrets)
}

#[test]
fn each_secret_is_masked_and_the_rest_stays() {
    let mut failures = Vec::new();
    let mut count = 0;
    for line in SHAPES.into_iter().flat_map(lines) {
        let cases: Vec<_> = arguments(line).iter().map(|word| case(word)).collect();
        assert!(cases.iter().any(|(.., secrets)| !secrets.is_empty()), "no secret: {line}");
        let given: Vec<String> = cases.iter().map(|(given, ..)| given.clone()).collect();
        let wanted: Vec<String> = cases.iter().map(|(_, wanted, _)| wanted.clone()).collect();
        let masked = redact(&given);
        let shown = masked.join(" ");
        let leaks = shown.contains(SECRET) || shown.contains("abcdefghij");
        if leaks || masked != wanted {
            failures.push(format!("{line}\n  is     {shown}\n  wanted {}", wanted.join(" ")));
        }
        count += 1;
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(count > 800, "{count} lines");
}

#[test]
fn what_is_masked_stays_so() {
    for line in SHAPES.into_iter().flat_map(lines) {
        let given: Vec<String> = arguments(line).iter().map(|word| case(word).0).collect();
        let masked = redact(&redact(&given)).join(" ");
        assert!(!masked.contains(SECRET) && !masked.contains("abcdefghij"), "{line}: {masked}");
    }
}

#[test]
fn lines_without_a_secret_stay() {
    let mut failures = Vec::new();
    for line in lines(PLAIN) {
        let given = arguments(line);
        let masked = redact(&given);
        if masked != given {
            failures.push(format!("{line}\n  is {}", masked.join(" ")));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
