//! Names that promise a secret.

use std::{collections::HashSet, sync::LazyLock};

/// Words that are looked up often.
type Words = LazyLock<HashSet<&'static str>>;

/// Parts of a name that promise a secret, in lower case.
static PARTS: Words = Words::new(|| {
    words(&[
        "bearer cookie cookies cred creds credential credentials jwt otp totp pin psk pw pwd sas sessionid passin",
        "hmac hashes mfa mnemonic",
        "pass passcode passcommand passeval passwordeval passkey passphrase passphrases passwd password passwords",
        "secret secrets token tokens",
        "key keys accesskey accountkey apikey appkey authkey encryptionkey hmackey licensekey masterkey preauthkey",
        "privatekey privkey secretkey sharedkey signingkey keypass",
    ])
});
/// Ends of such parts, for names that are written in one.
const ENDS: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "accesskey",
    "pwd",
    "pass",
    "pw",
    "secretkey",
    "privatekey",
    "authkey",
    "credentials",
];
/// Parts that end so and promise nothing.
const HARMLESS_PARTS: &[&str] = &["bypass", "compass", "overpass", "trespass", "surpass"];
/// Last parts of names that say something about a secret, such as where it lies.
static ABOUT: Words = Words::new(|| {
    words(&[
        "agent algo algorithm algorithms alg authentication checking count dir directory enabled endpoint exchange",
        "expiry fd file files fingerprint format helper jar length len limit lifetime name path policy prompt required",
        "ring server size stdin store ttl type types uri url usage version",
    ])
});
/// Parts that make a `key` nothing to hide.
const OPEN_KEYS: &[&str] = &["public pub primary foreign partition sort cache row object host hostkey recv send"];
/// Parts that make `tokens` a number.
const AMOUNTS: &[&str] = &["max min num total prompt completion"];
/// Ends of names that are secrets without saying so.
const WHOLE: &[&str] = &["_auth", "sonar.login", "authorization"];
/// Parameters of a query that are secrets there.
const QUERY: &[&str] =
    &["sig signature x-amz-signature x-goog-signature x-goog-credential code assertion auth hmac ticket sid session k"];
/// Names of passwords, which also stand before their value without a sign, as in SQL.
const PASSWORDS: &[&str] = &["password passwd passphrase"];
/// Names whose value is `user:password`.
const LOGINS: &[&str] = &["auth user userpwd userpass login basic credentials basicauth usercred httpauth"];
/// Calls whose last argument is a password.
const CALLS: &[&str] = &[
    "auth login httpbasicauth httpdigestauth basicauth basic_auth authenticate setbasicauth pdo mysqli mysqli_connect",
    "mysql_connect pg_connect getconnection",
];
/// Calls with a host, a user and a password.
const CONNECTS: &[&str] = &["connect ftp ftp_tls open login_user createconnection dbconnect"];
/// Headers whose whole value is a secret.
const HEADERS: &[&str] = &[
    "authorization proxy-authorization cookie set-cookie x-authorization",
    "x-hub-signature x-hub-signature-256 x-signature x-slack-signature stripe-signature",
];
/// Schemes of an authorisation, which are no secret.
const SCHEMES: &[&str] =
    &["apikey aws aws4-hmac-sha256 basic bearer bot digest genie key negotiate ntlm sharedkey splunk token"];

/// The words of a list.
fn words(list: &'static [&'static str]) -> HashSet<&'static str> {
    list.iter().flat_map(|words| words.split(' ')).collect()
}

/// The list has the word.
fn has(list: &[&str], word: &str) -> bool {
    list.iter().any(|words| words.split(' ').any(|listed| listed == word))
}

/// The name, part by part (`keyStorePassword`, `DD_API_KEY`, `X-Auth-Token`), promises a secret.
pub(super) fn is_secret(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    if WHOLE.iter().any(|whole| lower.ends_with(whole)) {
        return true;
    }
    let parts = parts(name);
    let Some(last) = parts.last() else { return false };
    let named = |part: &String| {
        PARTS.contains(part.as_str()) || ENDS.iter().any(|end| part.ends_with(end)) && !has(HARMLESS_PARTS, part)
    };
    if ABOUT.contains(last.as_str()) && parts.len() > 1 || !parts.iter().any(named) {
        return false;
    }
    // A name that only has a public key, or counts tokens.
    let weak = |part: &String| !named(part) || part == "key" || part == "keys" || part == "tokens";
    let open = |part: &String| has(OPEN_KEYS, part) || last == "tokens" && has(AMOUNTS, part);
    !(parts.iter().all(weak) && parts.iter().any(open))
}

/// As [`is_secret`], of a parameter in a query.
pub(super) fn is_secret_parameter(name: &str) -> bool {
    has(QUERY, &name.to_ascii_lowercase()) || is_secret(name)
}

/// A password's name.
pub(super) fn is_password(name: &str) -> bool {
    has(PASSWORDS, &name.to_ascii_lowercase())
}

/// The value is `user:password`.
pub(super) fn is_login(name: &str) -> bool {
    parts(name).last().is_some_and(|last| has(LOGINS, last))
}

/// A function that takes a password.
pub(super) fn is_call(name: &str) -> bool {
    has(CALLS, name.rsplit('.').next().unwrap_or(name).to_ascii_lowercase().as_str())
}

/// A function whose last argument may be a password.
pub(super) fn is_connect(name: &str) -> bool {
    has(CONNECTS, name.rsplit('.').next().unwrap_or(name).to_ascii_lowercase().as_str())
}

/// A header whose whole value is a secret.
pub(super) fn is_header(name: &str) -> bool {
    has(HEADERS, &name.to_ascii_lowercase())
}

/// The scheme of an authorisation.
pub(super) fn is_scheme(word: &str) -> bool {
    word.len() <= 20 && has(SCHEMES, &word.to_ascii_lowercase())
}

/// The parts of a name, in lower case.
fn parts(name: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut open = false;
    let mut lower_before = false;
    for character in name.chars() {
        let letter = character.is_ascii_alphanumeric();
        if letter {
            if !open || character.is_ascii_uppercase() && lower_before {
                parts.push(String::new());
            }
            if let Some(part) = parts.last_mut() {
                part.push(character.to_ascii_lowercase());
            }
        }
        open = letter;
        lower_before = character.is_ascii_lowercase();
    }
    parts
}
