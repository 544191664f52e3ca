//! Arguments that a stranger makes long or deep: the work grows as the length does, and the stack does not.

use std::time::Duration;

use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};

use super::redact;

/// Length of a long argument; the kernel takes none that is longer.
const LONG: usize = 128 << 10;
/// How much longer four times as much may take; sixteen times would be a square. The machine may be busy.
const GROWTH: u32 = 10;

/// What may be repeated to some end.
const PATTERNS: &[&str] = &[
    "\"",
    "'",
    "\\\"",
    "\\",
    "\\\\\"",
    "\"'",
    "'\"",
    "a=",
    "a='",
    "a=\"",
    "=",
    ":",
    "://",
    "https://",
    "https://a:",
    "a@",
    "a:b@",
    "https://a:b@",
    "@",
    "/",
    "{",
    "{\"a\":",
    "{\"a\":\"",
    "[",
    "[\"",
    "(",
    ")",
    "$(",
    "<(",
    "`",
    "|",
    ";",
    "&",
    "<<<",
    "<< a ",
    "chpasswd<<a;",
    "chpasswd <<",
    " ",
    "a ",
    "-p ",
    "-u ",
    "--password ",
    "--password=",
    "password",
    "password ",
    "password:",
    "password=",
    "password=\"",
    "password='",
    "password=[",
    "password\"",
    "password\",\"",
    "token\\\"",
    "user=\"",
    "user=",
    "<password>",
    "<password",
    "password%3a",
    "password value",
    "key,",
    "auth(",
    "auth=(",
    "connect(a,",
    "connect(,",
    "by '",
    "by ",
    "Authorization: ",
    "Authorization: Bearer ",
    "Cookie:",
    "a: ",
    "-H",
    "-u",
    "mysql ",
    "sudo ",
    "docker login ",
    "vault login ",
    "echo ",
    "echo a|",
    "echo a;",
    "sh -c ",
    "sh -c '",
    "x{ ",
    "{ echo a; ",
    "PRIVATE KEY",
    "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY----------END ",
    "eyJ",
    "eyJaaaaaaaaaa.",
    "ey",
    "sk-",
    "sk_live_",
    "ghp_",
    "ghp_0123456789abcdef",
    "0123456789abcdef",
    "AKIA",
    "$6$",
    "xoxb-",
    "xoxe.xoxb-1-",
    "hooks.slack.com/services/",
    "1//0",
    ":AA",
    "glpat-",
    "pat.",
    "sl.",
    "é",
    "\u{3000}",
    "a\u{3000}",
    "é=",
    "\n",
    "a\n",
    "\"a b\" ",
    "\"a=b\" ",
    "a\"b c\"",
    "secret,",
    "secret,data=",
    "jdbc:oracle:",
    "jdbc:oracle:a:",
    "a.b-c_",
    "A",
    "Ab",
    "\\\"\\\\\"\\\\\\\"",
    "$'",
    "$\"",
    ">",
    "> ",
    "tee ",
    "2>&1 ",
    "&>",
    "%22",
    "%3d",
    "--",
    "-",
    "<<",
    "redis-cli auth ",
    "value",
    ",",
    "\",\"value\":\"",
    "E'",
];

/// Of the processor, so that it is no matter what else runs.
fn time(args: &[String]) -> Duration {
    let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let start = now();
    assert_eq!(redact(args).len(), args.len());
    now() - start
}

/// An argument of this length.
fn argument(pattern: &str, length: usize) -> [String; 1] {
    [pattern.repeat(length / pattern.len())]
}

/// Four times as much takes not much more than four times as long.
fn assert_linear(what: &str, quarter: Duration, whole: Duration) {
    // What takes as little time says nothing.
    assert!(whole < quarter.max(Duration::from_millis(20)) * GROWTH, "{what:?}: {quarter:?}, then {whole:?}");
}

#[test]
fn work_grows_as_the_length_does() {
    for pattern in PATTERNS {
        let time = |length| time(&argument(pattern, length));
        // Compiles what is compiled once.
        time(LONG / 256);
        assert_linear(pattern, time(LONG / 64), time(LONG / 16));
    }
}

#[test]
fn the_longest_arguments_take_no_longer() {
    for pattern in ["\"", "\\\"", "a=", "https://", "https://a:b@", "{\"a\":\"", "user=", "password=\"", "eyJ"] {
        let time = |length| time(&argument(pattern, length));
        assert_linear(pattern, time(LONG / 4), time(LONG));
    }
}

#[test]
fn many_arguments_take_no_longer() {
    for pattern in PATTERNS {
        let time = |count| time(&vec![pattern.trim().to_owned(); count]);
        assert_linear(pattern, time(250), time(1_000));
    }
}

#[test]
fn what_nests_does_not_overflow_the_stack() {
    let nested = |open: &str, close: &str| open.repeat(20_000) + "S3CR3T" + &close.repeat(20_000);
    for (open, close) in
        [("{\"a\":", "}"), ("[", "]"), ("(", ")"), ("a=", ""), ("sh -c '", "'"), ("$(", ")"), ("-H", "")]
    {
        let text = nested(open, close);
        // A small stack shows it.
        let run = std::thread::Builder::new().stack_size(256 << 10).spawn(move || redact(&[text]).len());
        assert_eq!(run.expect("a thread starts").join().expect("it ends"), 1);
    }
}

#[test]
fn quotes_in_quotes_are_followed_to_a_depth_and_masked_beyond() {
    let mut text = "mysql -pS3CR3T".to_owned();
    for depth in 0..9 {
        text = format!("sh -c {}", quote(&text));
        let masked = redact(&[text.clone()]).join("");
        assert!(!masked.contains("S3CR3T"), "{text}");
        assert!(depth > 4 || masked.contains("mysql"), "{masked}");
    }
}

/// The text in double quotes, as a shell wants it.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

proptest! {
    #[test]
    fn any_mixture_of_what_has_a_meaning_is_survived(
        args in prop::collection::vec(prop::collection::vec(prop::sample::select(PATTERNS), 0..12), 1..5)
    ) {
        let args: Vec<String> = args.iter().map(|parts| parts.concat()).collect();
        prop_assert_eq!(redact(&args).len(), args.len());
    }
}
