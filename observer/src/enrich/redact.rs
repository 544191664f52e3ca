//! Masks secrets in command lines before they go anywhere. Pure.
//!
//! Masked: the value of an argument or of a `NAME=value` word whose name says key, token, secret, password or credential;
//! passwords in URLs and in `user:password` arguments; authorisation headers; words in the form of well-known keys.

use std::sync::LazyLock;

use regex_lite::Regex;

/// Stands for a secret.
pub const MASK: &str = "***";

/// A name that promises a secret, as a whole option, variable or header name.
static SECRET_NAME: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?i)(^|[-_.]|api|access|auth|private|secret|app)(key|token|secret|passw(or)?d|passwd|pwd|passphrase|credentials?)s?($|[-_.](id|file)?$|[-_.])",
    )
});
/// `NAME=value` or `--name=value` or `Name: value`, anywhere in an argument (an inline script has several).
static ASSIGNMENT: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"([A-Za-z_-][A-Za-z0-9_.-]*)(=|: ?)("[^"]*"|'[^']*'|[^\s"';&|]+)"#));
static URL_PASSWORD: LazyLock<Regex> = LazyLock::new(|| pattern(r"([A-Za-z][A-Za-z0-9+.-]*://[^/\s:@]*):([^@\s/]+)@"));
static AUTHORIZATION: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?i)((?:proxy-)?authorization\s*[:=]\s*(?:[a-z]+\s+)?)([^\s\x22']+)"));
static KNOWN_KEYS: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"\b(AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}|sk-[A-Za-z0-9_-]{20,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*|NRAK-[A-Z0-9]{20,}|[0-9a-f]{32}|[0-9a-f]{40})\b",
    )
});

/// Options whose value is `user:password`.
const USER_OPTIONS: [&str; 4] = ["-u", "--user", "-U", "--proxy-user"];

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a constant pattern compiles, as the tests show")
}

/// The arguments with every secret masked.
pub fn redact(args: &[String]) -> Vec<String> {
    let mut previous: Option<&str> = None;
    args.iter()
        .map(|arg| {
            let masked = match previous {
                Some(option)
                    if option.starts_with('-')
                        && !option.contains('=')
                        && is_secret_name(option.trim_start_matches('-'))
                        && !arg.starts_with('-') =>
                {
                    MASK.to_owned()
                }
                Some(option) if USER_OPTIONS.contains(&option) => mask_user(arg),
                _ => redact_text(arg),
            };
            previous = Some(arg);
            masked
        })
        .collect()
}

/// One text with every secret masked: an argument, an inline script, a URL.
pub fn redact_text(text: &str) -> String {
    let text = URL_PASSWORD.replace_all(text, format!("$1:{MASK}@"));
    let text = AUTHORIZATION.replace_all(&text, format!("$1{MASK}"));
    let text = ASSIGNMENT.replace_all(&text, |found: &regex_lite::Captures<'_>| {
        let (name, sign) = (&found[1], &found[2]);
        if is_secret_name(name.trim_start_matches('-')) { format!("{name}{sign}{MASK}") } else { found[0].to_owned() }
    });
    KNOWN_KEYS.replace_all(&text, MASK).into_owned()
}

fn is_secret_name(name: &str) -> bool {
    SECRET_NAME.is_match(name)
}

fn mask_user(value: &str) -> String {
    match value.split_once(':') {
        Some((user, password)) if !password.is_empty() => format!("{user}:{MASK}"),
        _ => redact_text(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> String {
        redact(&text.split(' ').map(str::to_owned).collect::<Vec<_>>()).join(" ")
    }

    #[test]
    fn secrets_by_name() {
        assert_eq!(line("env DD_API_KEY=abc DD_SITE=datadoghq.com"), "env DD_API_KEY=*** DD_SITE=datadoghq.com");
        assert_eq!(line("tool --token abc --retry 5"), "tool --token *** --retry 5");
        assert_eq!(line("tool --api-key=abc -v"), "tool --api-key=*** -v");
        assert_eq!(line("mysql --password=x"), "mysql --password=***");
        assert_eq!(line("x --client-secret y"), "x --client-secret ***");
        assert_eq!(line("x AWS_SECRET_ACCESS_KEY=y"), "x AWS_SECRET_ACCESS_KEY=***");
        assert_eq!(line("x GOOGLE_APPLICATION_CREDENTIALS=y"), "x GOOGLE_APPLICATION_CREDENTIALS=***");
    }

    #[test]
    fn secrets_inside_a_script() {
        let script =
            "DD_API_KEY=abc DD_SITE=\"x\" bash -c \"$(curl -L https://install.datadoghq.com/s.sh)\"".to_owned();
        let masked = redact(&["sh".into(), "-c".into(), script]);
        assert_eq!(masked[2], "DD_API_KEY=*** DD_SITE=\"x\" bash -c \"$(curl -L https://install.datadoghq.com/s.sh)\"");
    }

    #[test]
    fn urls_headers_and_known_forms() {
        assert_eq!(line("curl https://bob:hunter2@example.com/x"), "curl https://bob:***@example.com/x");
        assert_eq!(line("curl -u bob:hunter2 http://h/"), "curl -u bob:*** http://h/");
        assert_eq!(redact_text("Authorization: Bearer abc.def"), "Authorization: Bearer ***");
        assert_eq!(redact_text("X-Api-Key: abc"), "X-Api-Key: ***");
        assert_eq!(line("x AKIAIOSFODNN7EXAMPLE"), "x ***");
        assert_eq!(line("agent 0123456789abcdef0123456789abcdef"), "agent ***");
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "curl -fsSL --retry 5 https://install.datadoghq.com/scripts/install_script_agent7.sh",
            "apt-get install -y datadog-signing-keys",
            "python3 -m http.server 8080",
            "ssh -i /root/.ssh/id_ed25519 deploy@web-3",
            "monkey --tokenizer bpe --keyboard us --author me",
        ] {
            assert_eq!(line(text), text);
        }
    }
}
