//! Masks secrets in command lines before they go anywhere. Pure.
//!
//! Masked: the value of an option, a `NAME=value`, a header, a JSON member or a query parameter whose name says key, token,
//! secret, password, credential or cookie; passwords in URLs and in `user:password` arguments; the short options with which
//! common programs take one; words in the form of well-known keys. In doubt it masks: a value too many hidden costs a look
//! at `ps`, one too few shown costs a key.

use std::sync::LazyLock;

use regex_lite::{Captures, Regex};

/// Stands for a secret.
pub const MASK: &str = "***";

/// A word of a script: quoted parts belong to it.
static WORD: LazyLock<Regex> = LazyLock::new(|| pattern(r#"(?:"[^"]*"|'[^']*'|[^\s"'])+|["']"#));
/// `name=rest`, at the start of a word or of what follows another sign.
static ASSIGNMENT: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?s)^(-*[A-Za-z_][A-Za-z0-9_.-]*)=(.*)$"));
/// `Name: rest`
static HEADER: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?s)^([A-Za-z][A-Za-z0-9-]*):(\s*)(.+)$"));
/// The scheme of an authorisation header, which is no secret.
static SCHEME: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?s)^([A-Za-z]+\s+)\S"));
/// `scheme://authority` and the rest of the word.
static URL: LazyLock<Regex> = LazyLock::new(|| pattern(r#"(?s)^(.*?[A-Za-z][A-Za-z0-9+.-]*://)([^\s"']*)(.*)$"#));
/// `?name=value`, `;name=value`, `,name=value` in the middle of a word.
static PARAMETER: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"([?&;,\s{(]|^)([A-Za-z_][A-Za-z0-9_.-]*)=([^&;,#\s"')]+)"#));
/// `"name": "value"`
static MEMBER: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"(["'])([^"']+)(["']\s*:\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[^\s,}]+)"#));
static KNOWN_KEYS: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"\b(AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}|[sr]k[-_](?:live_|test_)?[A-Za-z0-9_-]{20,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*|NRAK-[A-Z0-9]{20,}|[0-9a-f]{32}|[0-9a-f]{40})\b",
    )
});

/// Parts of a name that promise a secret.
const SECRET_PARTS: [&str; 23] = [
    "bearer",
    "key",
    "keys",
    "apikey",
    "appkey",
    "authkey",
    "accesskey",
    "secretkey",
    "privatekey",
    "accountkey",
    "token",
    "tokens",
    "secret",
    "secrets",
    "password",
    "passwords",
    "passwd",
    "passphrase",
    "passcode",
    "pass",
    "pwd",
    "credential",
    "credentials",
];
/// Ends of such parts, for names that are written in one.
const SECRET_ENDS: [&str; 8] = ["password", "passwd", "secret", "token", "apikey", "accesskey", "pwd", "sshpass"];
/// Headers whose whole value is one.
const SECRET_HEADERS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "set-cookie"];
/// Options whose value is `user:password`.
const USER_OPTIONS: [&str; 7] = ["--cert", "-u", "--user", "-U", "--proxy-user", "--auth", "--userpwd"];
/// Options whose value is `[user:password@]host:port`.
const PROXY_OPTIONS: [&str; 3] = ["-x", "--proxy", "--preproxy"];
/// Nobody's name is as long.
const LONG_USER: usize = 16;
/// Programs that take a password behind a short option: the option, and whether the value may stand apart.
const SHORT_OPTIONS: [(&str, &str, bool); 8] = [
    ("mysql", "-p", false),
    ("mysqldump", "-p", false),
    ("mysqladmin", "-p", false),
    ("mariadb", "-p", false),
    ("mariadb-dump", "-p", false),
    ("sshpass", "-p", true),
    ("redis-cli", "-a", true),
    ("ldapsearch", "-w", true),
];

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a constant pattern compiles, as the tests show")
}

/// The arguments with every secret masked.
pub fn redact(args: &[String]) -> Vec<String> {
    words(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Words of a command line, in the light of those before them.
fn words(args: &[&str]) -> Vec<String> {
    let mut program = "";
    let mut previous: Option<&str> = None;
    args.iter()
        .map(|arg| {
            if previous.is_none_or(|previous| previous.ends_with([';', '|', '&']))
                || short_options(name_of(arg)).is_some()
            {
                program = name_of(arg);
            }
            let masked = match previous {
                Some(option) if asks_for_a_secret(option) && !arg.starts_with("--") => MASK.to_owned(),
                Some(option) if short_options(program).is_some_and(|(short, apart)| apart && option == short) => {
                    MASK.to_owned()
                }
                Some(option) if takes_user(option) => mask_user(arg),
                Some(option) if PROXY_OPTIONS.contains(&option) => mask_proxy(arg),
                _ => match short_options(program) {
                    Some((short, _)) if arg.len() > short.len() && arg.starts_with(short) => format!("{short}{MASK}"),
                    _ => word(arg),
                },
            };
            previous = Some(arg);
            masked
        })
        .collect()
}

/// One word: an argument, or a whole script.
fn word(text: &str) -> String {
    let trimmed = text.trim();
    for quote in ['"', '\''] {
        if let Some(inner) = trimmed.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote))
            && !inner.contains(quote)
        {
            return format!("{quote}{}{quote}", word(inner));
        }
    }
    if let Some(found) = HEADER.captures(text)
        && let Some(masked) = header(&found)
    {
        return masked;
    }
    // An attached header: `-HName: value`.
    if let Some(header) = text.strip_prefix("-H").filter(|header| !header.is_empty()) {
        return format!("-H{}", word(header));
    }
    // An option is one word, whatever its value holds; `NAME=value command` is a script.
    if let Some(found) = ASSIGNMENT.captures(text).filter(|_| text.starts_with('-') || !spreads(text)) {
        let (name, rest) = (&found[1], &found[2]);
        return if is_secret(name) && !rest.is_empty() {
            format!("{name}={MASK}")
        } else {
            format!("{name}={}", word(rest))
        };
    }
    if spreads(text) {
        return script(text);
    }
    if let Some(rest) = text.strip_prefix("pass:").filter(|rest| !rest.is_empty()) {
        return text.replacen(rest, MASK, 1);
    }
    // An attached short option: `-ubob:password`.
    if let Some(value) = text.strip_prefix("-u").filter(|value| value.contains(':') && !value.contains("//")) {
        return format!("-u{}", mask_user(value));
    }
    inside(text)
}

/// Several words in one, as in `sh -c '…'`; a body of JSON is none.
fn spreads(text: &str) -> bool {
    let before_quotes = text.trim_start();
    text.contains(char::is_whitespace)
        && !before_quotes.starts_with(['{', '['])
        && WORD.find(text).is_some_and(|first| first.end() < text.trim_end().len())
}

/// Each word by itself, what stands between them as it is.
fn script(text: &str) -> String {
    let found: Vec<_> = WORD.find_iter(text).collect();
    let masked = words(&found.iter().map(regex_lite::Match::as_str).collect::<Vec<_>>());
    let (mut whole, mut end) = (String::new(), 0);
    for (found, masked) in found.iter().zip(masked) {
        whole.push_str(&text[end..found.start()]);
        whole.push_str(&masked);
        end = found.end();
    }
    whole.push_str(&text[end..]);
    whole
}

/// URLs, parameters, JSON members and known forms inside a word.
fn inside(text: &str) -> String {
    let text = match URL.captures(text) {
        Some(found) => format!("{}{}{}", &found[1], mask_proxy(&found[2]), &found[3]),
        None => text.to_owned(),
    };
    let text = MEMBER.replace_all(&text, |found: &Captures<'_>| {
        let quote =
            found[4].chars().next().filter(|quote| matches!(quote, '"' | '\'')).map(String::from).unwrap_or_default();
        if is_secret(&found[2]) {
            format!("{}{}{}{quote}{MASK}{quote}", &found[1], &found[2], &found[3])
        } else {
            found[0].to_owned()
        }
    });
    let text = PARAMETER.replace_all(&text, |found: &Captures<'_>| {
        if is_secret(&found[2]) { format!("{}{}={MASK}", &found[1], &found[2]) } else { found[0].to_owned() }
    });
    KNOWN_KEYS.replace_all(&text, MASK).into_owned()
}

fn header(found: &Captures<'_>) -> Option<String> {
    let (name, gap, value) = (&found[1], &found[2], &found[3]);
    if SECRET_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
        let scheme = SCHEME.captures(value).map_or("", |found| found.get(1).map_or("", |scheme| scheme.as_str()));
        return Some(format!("{name}:{gap}{scheme}{MASK}"));
    }
    (is_secret(name) && !value.starts_with("//")).then(|| format!("{name}:{gap}{MASK}"))
}

/// `--password` and the like, with the value in the next word.
fn asks_for_a_secret(option: &str) -> bool {
    // `configure set aws_secret_access_key VALUE`: a name that is nothing but one.
    let is_name = option.contains('_') && option.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    (is_name || option.starts_with('-')) && !option.contains('=') && is_secret(option)
}

/// `-u`, also at the end of a cluster as in `-su`.
fn takes_user(option: &str) -> bool {
    let cluster = option.len() > 2
        && option.ends_with('u')
        && option.strip_prefix('-').is_some_and(|letters| letters.bytes().all(|letter| letter.is_ascii_alphabetic()))
        && option.len() <= 6;
    cluster || USER_OPTIONS.contains(&option)
}

fn mask_user(value: &str) -> String {
    match value.split_once([':', '%']) {
        Some((user, password)) if !password.is_empty() => {
            format!("{user}{}{MASK}", &value[user.len()..=user.len()])
        }
        _ => word(value),
    }
}

/// The password in `user:password@host`; the password may have an `@` or a `/` of its own.
fn mask_proxy(value: &str) -> String {
    let plain = || value.to_owned();
    let Some((login, host)) = value.rsplit_once('@') else { return plain() };
    let Some((user, password)) = login.split_once(':') else {
        // A long user alone is a token.
        return if login.len() >= LONG_USER && !login.contains('/') { format!("{MASK}@{host}") } else { plain() };
    };
    // `host:8080/@name` has a port and no password.
    let port = password.split('/').next().is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    if user.contains('/') || port && password.contains('/') { plain() } else { format!("{user}:{MASK}@{host}") }
}

fn short_options(program: &str) -> Option<(&'static str, bool)> {
    SHORT_OPTIONS.iter().find(|(name, ..)| *name == program).map(|(_, short, apart)| (*short, *apart))
}

/// File name of a path.
fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The name, part by part (`keyStorePassword`, `DD_API_KEY`, `X-Auth-Token`), promises a secret.
fn is_secret(name: &str) -> bool {
    let mut parts = vec![String::new()];
    let mut lower_before = false;
    for character in name.chars() {
        if !character.is_ascii_alphanumeric() || character.is_ascii_uppercase() && lower_before {
            parts.push(String::new());
        }
        if character.is_ascii_alphanumeric()
            && let Some(part) = parts.last_mut()
        {
            part.push(character.to_ascii_lowercase());
        }
        lower_before = character.is_ascii_lowercase();
    }
    parts.iter().any(|part| {
        SECRET_PARTS.contains(&part.as_str())
            || SECRET_ENDS.iter().any(|end| part.len() > end.len() && part.ends_with(end))
            || part == "sshpass"
            || part == "cookie"
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Arguments between bars.
    fn line(text: &str) -> String {
        redact(&text.split('|').map(str::to_owned).collect::<Vec<_>>()).join("|")
    }

    #[test]
    fn nothing_of_the_secret_is_left() {
        for text in [
            "env|DD_API_KEY=S3CR3T|DD_SITE=datadoghq.com",
            "tool|--token|S3CR3T|--retry|5",
            "tool|--api-key=S3CR3T|-v",
            "mysql|--password=S3CR3T",
            "mysql|--password=ab;S3CR3T",
            "mysql|--password=a S3CR3T",
            "x|--password|-S3CR3T",
            "x|--client-secret|S3CR3T",
            "x|AWS_SECRET_ACCESS_KEY=S3CR3T",
            "x|GOOGLE_APPLICATION_CREDENTIALS=S3CR3T",
            "psql|PGPASSWORD=S3CR3T",
            "x|--dbpassword=S3CR3T",
            "java|-Djavax.net.ssl.keyStorePassword=S3CR3T",
            "x|--clientSecret=S3CR3T",
            "x|DefaultEndpointsProtocol=https;AccountName=a;AccountKey=S3CR3T;EndpointSuffix=b",
            "SSHPASS=S3CR3T|ssh",
            "x|--pass|S3CR3T",
            "curl|https://h/v1?api_key=S3CR3T",
            "curl|https://h/v1?a=b&access_token=S3CR3T#x",
            "docker|run|--env=MYSQL_ROOT_PASSWORD=S3CR3T",
            "systemd-run|--setenv=DD_API_KEY=S3CR3T",
            "kubectl|create|--from-literal=password=S3CR3T",
            "helm|--set=auth.password=S3CR3T",
            "wget|--header=X-Api-Key: S3CR3T",
            "x|--proxy=http://h/?token=S3CR3T",
            "curl|https://bob:S3CR3T@example.com/x",
            "curl|https://u:p@S3CR3T@h/",
            "curl|https://u:p/S3CR3T@h/",
            "curl|-d|{\"user\":\"bob\",\"password\":\"S3CR3T\"}",
            "curl|-d|{\"user\": \"bob\", \"password\": \"S3CR3T\"}",
            "sh|-c|curl -u bob:S3CR3T https://h/",
            "ssh|h|mysqldump --password S3CR3T db",
            "sh|-c|tool --token S3CR3T",
            "sh|-c|tool --token 'S3CR3T S3CR3T'",
            "sh|-c|DD_API_KEY=S3CR3T DD_SITE=\"x\" bash -c \"$(curl -L https://install.datadoghq.com/s.sh)\"",
            "sh|-c|cd /tmp; mysql -pS3CR3T db",
            "sh|-c|curl -H 'Authorization: Bearer S3CR3T' https://h/",
            "curl|-HAuthorization: Bearer S3CR3T|https://h/",
            "sh|-c|curl -H'Authorization: Bearer S3CR3T' https://h/",
            "curl|-HX-Api-Key: S3CR3T|https://h/",
            "curl|--oauth2-bearer|S3CR3T|https://h/",
            "curl|--cert|file.pem:S3CR3T|https://h/",
            "git|clone|https://S3CR3TS3CR3TS3CR3T@github.com/a/b",
            "aws|configure|set|aws_secret_access_key|S3CR3T",
            "curl|-su|bob:S3CR3T|https://h/",
            "curl|-ubob:S3CR3T|https://h/",
            "curl|-x|bob:S3CR3T@proxy:3128|https://h/",
            "mysql|-pS3CR3T",
            "/usr/bin/mysqldump|-u|root|-pS3CR3T",
            "sshpass|-p|S3CR3T|ssh|h",
            "sudo|sshpass|-pS3CR3T|ssh|h",
            "redis-cli|-a|S3CR3T",
            "smbclient|-U|bob%S3CR3T",
            "openssl|rsa|-passin|pass:S3CR3T",
            "curl|-H|X-Auth-Token:  S3CR3T",
            "curl|-H|Authorization: Digest username=S3CR3T",
            "curl|-H|Cookie: session=S3CR3T; other=S3CR3T",
        ] {
            let masked = line(text);
            assert!(!masked.contains("S3CR3T"), "{text} → {masked}");
            assert!(masked.contains(MASK), "{text} → {masked}");
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "curl|-fsSL|--retry|5|https://install.datadoghq.com/scripts/install_script_agent7.sh",
            "apt-get|install|-y|datadog-signing-keys",
            "python3|-m|http.server|8080",
            "ssh|-i|/root/.ssh/id_ed25519|deploy@web-3",
            "monkey|--tokenizer|bpe|--keyboard|us|--author|me",
            "sh|-c|DD_SITE=\"x\" bash -c \"$(curl -L https://install.datadoghq.com/s.sh)\"",
            "curl|https://host:8080/@name/x",
            "curl|-x|proxy:3128|http://h/",
            "mysql|-u|root|-h|db",
            "awk|{ print $1 }",
            "date|+%H:%M",
        ] {
            assert_eq!(line(text), text);
        }
    }

    #[test]
    fn the_rest_of_the_line_can_still_be_read() {
        assert_eq!(line("curl|https://bob:S3CR3T@example.com/x"), "curl|https://bob:***@example.com/x");
        assert_eq!(line("curl|-u|bob:S3CR3T|http://h/"), "curl|-u|bob:***|http://h/");
        assert_eq!(line("curl|-H|Authorization: Bearer S3CR3T"), "curl|-H|Authorization: Bearer ***");
        assert_eq!(line("x|AKIAIOSFODNN7EXAMPLE"), "x|***");
        assert_eq!(line("agent|0123456789abcdef0123456789abcdef"), "agent|***");
        assert_eq!(line("sh|-c|A=1 DD_API_KEY=S3CR3T curl h"), "sh|-c|A=1 DD_API_KEY=*** curl h");
        assert_eq!(line("x|sk_live_0123456789abcdefghij"), "x|***");
    }

    proptest! {
        #[test]
        fn any_arguments_come_back_as_many(args in prop::collection::vec("\\PC{0,40}", 0..6)) {
            prop_assert_eq!(redact(&args).len(), args.len());
        }

        #[test]
        fn a_password_option_never_shows_its_value(value in "[a-z0-9;&@/ ]{1,20}Zq9") {
            for args in [vec![format!("--password={value}")], vec!["--password".to_owned(), value.clone()]] {
                prop_assert!(!redact(&args).join("|").contains("Zq9"));
            }
        }
    }
}
