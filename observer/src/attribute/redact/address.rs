//! Logins: in URLs, before hosts, and as arguments of their own.

use super::MASK;

/// Nobody's name is as long.
const LONG_USER: usize = 16;
/// Users whose password is nothing, so that they are the key.
const NO_PASSWORDS: [&str; 3] = ["", "x-oauth-basic", "x"];

/// What stands before a user, with a colon, and is none.
const SCHEMES: [&str; 12] =
    ["npm", "sftp", "ssh", "scp", "git", "rsync", "ftp", "mailto", "sip", "sips", "xmpp", "acct"];

/// Masks the login of each URL in the text.
pub(super) fn urls(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut whole, mut copied, mut at) = (String::new(), 0, 0);
    let mut quote = None;
    while let Some(found) = text[at..].find("://") {
        let start = at + found + "://".len();
        // A URL in quotes ends with them.
        quote = text[at..start].rfind(['"', '\'']).map(|found| bytes[at + found]).or(quote);
        let mut end = start;
        while end < bytes.len() && !bytes[end].is_ascii_whitespace() && Some(bytes[end]) != quote {
            if bytes[end..].starts_with(b"://") {
                break;
            }
            end += 1;
        }
        if bytes[end..].starts_with(b"://") {
            while end > start && (bytes[end - 1].is_ascii_alphanumeric() || b"+.-".contains(&bytes[end - 1])) {
                end -= 1;
            }
        }
        whole.push_str(&text[copied..start]);
        whole.push_str(&login(&text[start..end]));
        (copied, at) = (end, end.max(start));
    }
    whole.push_str(&text[copied..]);
    whole
}

/// Masks the password in `user:password@host`; the password may have an `@` or a `/` of its own.
pub(super) fn login(value: &str) -> String {
    let plain = || value.to_owned();
    let Some((login, host)) = value.rsplit_once('@') else { return plain() };
    let Some((user, password)) = login.split_once(':') else {
        // A long user alone is a token.
        return if login.len() >= LONG_USER && !login.contains(['/', '?', '\\']) {
            format!("{MASK}@{host}")
        } else {
            plain()
        };
    };
    // `host:8080/@name` has a port and no password.
    let port = password.split('/').next().is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    if user.contains('/') || port && password.contains('/') || password == MASK {
        return plain();
    }
    if NO_PASSWORDS.contains(&password) && !user.is_empty() {
        return format!("{MASK}:{password}@{host}");
    }
    format!("{user}:{MASK}@{host}")
}

/// Masks the password in `user:password@host[:port]` without a scheme, if the word is that.
pub(super) fn bare_login(word: &str) -> Option<String> {
    let (login, host) = word.rsplit_once('@')?;
    let (user, password) = login.split_once(':')?;
    let named = |text: &str, signs: &str| {
        !text.is_empty() && text.chars().all(|sign| sign.is_alphanumeric() || signs.contains(sign))
    };
    let is_digest = host.contains("sha256:") || host.contains("sha512:");
    let is_path = password.starts_with(['/', '~']) || password.contains("/");
    (named(user, "_.-\\/$+") && !password.is_empty() && !is_path && !is_digest && !SCHEMES.contains(&user))
        .then_some(())
        .filter(|()| named(host.split('/').next().unwrap_or(host), "_.-:[]()"))
        .map(|()| format!("{user}:{MASK}@{host}"))
}

/// Masks the password in `user:password`, or with another of the separators. Nothing if there is none.
pub(super) fn user(value: &str, separators: &[char]) -> Option<String> {
    let (user, password) = value.split_once(separators)?;
    let separator = &value[user.len()..value.len() - password.len()];
    let numbers = value.bytes().all(|byte| byte.is_ascii_digit() || byte == b':');
    match (user, password) {
        _ if numbers || value.contains("//") => None,
        ("", "") => None,
        // A token in the place of the user.
        (_, "") => Some(format!("{MASK}{separator}")),
        _ => Some(format!("{user}{separator}{MASK}")),
    }
}

/// Masks the password in `user/password@database`.
pub(super) fn slash(text: &str) -> Option<String> {
    let (start, login) = text.strip_prefix("userid=").map_or(("", text), |login| ("userid=", login));
    let (user, rest) = login.split_once('/')?;
    let named = !user.is_empty() && !user.starts_with(['@', '-', '.', '~']) && !user.contains(['=', '@', ':']);
    let database = rest.rfind('@').map_or("", |at| &rest[at..]);
    (named && !rest.is_empty()).then(|| format!("{start}{user}/{MASK}{database}"))
}

/// As [`slash`], in the address of a driver: `jdbc:oracle:thin:user/password@host`.
pub(super) fn driver(text: &str) -> Option<String> {
    const DRIVER: &str = "jdbc:oracle:";
    let driver = text.find(DRIVER)? + DRIVER.len();
    let start = driver + text[driver..].find(':')? + 1;
    let end = text[start..].find(|sign: char| sign.is_whitespace() || "\"'".contains(sign));
    let end = end.map_or(text.len(), |end| start + end);
    Some(format!("{}{}{}", &text[..start], slash(&text[start..end])?, &text[end..]))
}
