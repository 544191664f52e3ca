//! Keys that are recognised by their form.
//!
//! Two sets: gitleaks' rules as data in `formats.toml`, which hold a key to its exact form, and rules of our own, which
//! only want a well-known prefix and some length. A rule is compiled when one of its keywords first occurs.

use std::{borrow::Cow, sync::LazyLock};

use regex::{Captures, Regex, RegexBuilder};
use serde::Deserialize;

use super::MASK;

/// gitleaks' rules, see there for the licence.
const GITLEAKS: &str = include_str!("formats.toml");

/// Keywords in lower case, and the form. What the first group holds stays, such as the host of a hook.
const OWN: &[(&[&str], &str)] = &[
    (&["akia", "asia", "abia", "acca"], r"\b(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b"),
    (&["ghp_", "gho_", "ghu_", "ghs_", "ghr_"], r"\bgh[pousr]_[A-Za-z0-9]{16,}"),
    (&["github_pat_"], r"github_pat_[A-Za-z0-9_]{16,}"),
    (&["gl"], r"\bgl(?:pat|dt|rt|rtr|ptt|cbt|agent|oas|soat|ft|imt|ffct)-[\w.-]{16,}"),
    (&["xox", "xapp-"], r"\b(?:xox[a-z]|xapp)-[A-Za-z0-9.-]{8,}"),
    (&["hvs.", "hvb.", "hvr."], r"\bhv[sbr]\.[\w-]{16,}"),
    (&["s."], r"\bs\.[A-Za-z0-9]{24}\b"),
    (&["npm_"], r"\bnpm_[A-Za-z0-9]{16,}"),
    (&["pypi-"], r"\bpypi-[A-Za-z0-9_-]{16,}"),
    (&["dckr_"], r"\bdckr_(?:pat|oat)_[\w-]{16,}"),
    (&["aiza"], r"\bAIza[\w-]{30,}"),
    (&["ya29."], r"\bya29\.[\w.-]{16,}"),
    (&["1//0"], r"\b1//0[\w-]{20,}"),
    (&["gocspx-"], r"\bGOCSPX-[\w-]{16,}"),
    (&["sg."], r"\bSG\.[\w-]{16,}\.[\w-]{16,}"),
    (&["sk-", "sk_", "rk-", "rk_"], r"\b[sr]k[-_](?:live_|test_)?[A-Za-z0-9_-]{20,}\b"),
    (&["whsec_"], r"\bwhsec_[A-Za-z0-9+/=]{16,}"),
    (&["nrak-", "nrii-", "nrjs-", "nrra-"], r"\bNR(?:AK|II|JS|RA)-[A-Za-z0-9-]{16,}"),
    (&["nral"], r"\b[0-9a-f]{36}NRAL\b"),
    (&["shp"], r"\bshp(?:at|ca|pa|ss)_[A-Za-z0-9]{16,}"),
    (&["_v1_"], r"\bdo[opr]_v1_[A-Za-z0-9]{16,}"),
    (&["hf_"], r"\bhf_[A-Za-z0-9]{16,}"),
    (&["lin_api_", "lin_oauth_"], r"\blin_(?:api|oauth)_[A-Za-z0-9]{16,}"),
    (&["age-secret-key-"], r"\bAGE-SECRET-KEY-[0-9A-Z-]{20,}"),
    (&["glsa_", "glc_"], r"\bgl(?:sa|c)_[A-Za-z0-9_+/=]{16,}"),
    (&["eyj"], r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)*"),
    (&[":aa"], r"\b((?:bot)?)\d{6,12}:AA[\w-]{28,}"),
    (
        &["hooks.slack.com", "discord.com", "discordapp.com", "webhook.office.com"],
        concat!(
            r"((?:hooks\.slack\.com/(?:services|workflows|triggers)|discord(?:app)?\.com/api/(?:v\d+/)?webhooks",
            r"|webhook\.office\.com/webhookb2)/)[\w/+@-]+"
        ),
    ),
    (&["tskey-"], r"\btskey-[A-Za-z0-9-]{8,}"),
    (&["swmtkn-"], r"\bSWMTKN-1-[A-Za-z0-9-]{16,}"),
    (&["atatt3", "atctt3", "atbb", "bbdc-"], r"\b(?:ATATT3|ATCTT3|ATBB|BBDC-)[\w=+/-]{16,}"),
    (&["sntrys_", "sntryu_"], r"\bsntry[su]_[\w=+/-]{16,}"),
    (&["sq0"], r"\bsq0(?:atp|csp|idp)-[\w-]{16,}"),
    (
        &["nvapi-", "gsk_", "xai-", "r8_", "pplx-", "tvly-", "phx_", "sbp_", "rnd_", "figd_", "ntn_", "pul-", "key-"],
        r"\b(?:nvapi-|gsk_|xai-|r8_|pplx-|tvly-|phx_|sbp_|rnd_|figd_|ntn_|pul-|key-)[A-Za-z0-9_-]{24,}",
    ),
    (&["ccipat_", "bkua_", "cfut_", "cfat_"], r"\b(?:CCIPAT_|bkua_|cfut_|cfat_)[\w-]{16,}"),
    (&["dapi"], r"\bdapi[0-9a-f]{32}(?:-\d)?\b"),
    (&["$"], r"\$(?:1|2[abxy]|5|6|y|7|apr1|argon2[a-z]*)\$[./A-Za-z0-9$=,+-]{8,}"),
];
/// A hexadecimal key, and what tells a checksum or a revision from one.
const HEX: &str = concat!(
    r"((?:@|\b(?:sha1|md5)[:=-]|\b(?:commits?|archive|blob|tree|raw)/|\b(?:commit|rev|revision|ref|sha)=)?)",
    r"\b(?:[0-9a-f]{32}|[0-9a-f]{40})\b"
);

/// One form.
struct Format {
    keywords: Vec<String>,
    regex: LazyLock<Regex, Box<dyn FnOnce() -> Regex + Send>>,
    /// The first group stays.
    grouped: bool,
}

#[derive(Deserialize)]
struct File {
    rule: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    regex: String,
    keywords: Vec<String>,
}

static FORMATS: LazyLock<Vec<Format>> = LazyLock::new(|| {
    let file: File = toml::from_str(GITLEAKS).expect("a constant file parses, as the tests show");
    let own = OWN.iter().map(|(keywords, regex)| Format {
        keywords: keywords.iter().map(|&keyword| keyword.to_owned()).collect(),
        regex: LazyLock::new(Box::new(move || pattern(regex))),
        grouped: regex.starts_with("(") || regex.starts_with(r"\b((?:bot"),
    });
    let theirs = file.rule.into_iter().map(|rule| Format {
        keywords: rule.keywords,
        regex: LazyLock::new(Box::new(move || pattern(&rule.regex))),
        grouped: false,
    });
    own.chain(theirs).collect()
});
static HEX_KEYS: LazyLock<Regex> = LazyLock::new(|| pattern(HEX));

/// Classes are ASCII's: keys are, and the automata stay small.
fn pattern(text: &str) -> Regex {
    RegexBuilder::new(text).unicode(false).build().expect("a constant pattern compiles, as the tests show")
}

/// Masks each key in the text. `revisions`: what is hexadecimal names a revision.
pub(super) fn mask(text: &str, revisions: bool) -> String {
    let mut text = private_keys(text);
    let lower = text.to_ascii_lowercase();
    for format in FORMATS.iter().filter(|format| format.keywords.iter().any(|keyword| lower.contains(keyword))) {
        replace(&mut text, &format.regex, |found| {
            if format.grouped { format!("{}{MASK}", &found[1]) } else { MASK.to_owned() }
        });
    }
    if !revisions {
        replace(&mut text, &HEX_KEYS, |found| if found[1].is_empty() { MASK } else { &found[0] }.to_owned());
    }
    text.into_owned()
}

fn replace(text: &mut Cow<'_, str>, regex: &Regex, with: impl Fn(&Captures<'_>) -> String) {
    if let Cow::Owned(masked) = regex.replace_all(text, with) {
        *text = Cow::Owned(masked);
    }
}

/// Masks what stands between the lines of a private key, or follows the first one.
fn private_keys(text: &str) -> Cow<'_, str> {
    const END: &str = "-----END ";
    if !text.contains("PRIVATE KEY") {
        return Cow::Borrowed(text);
    }
    let (mut whole, mut rest) = (String::new(), text);
    while let Some(start) = rest.find("PRIVATE KEY") {
        let body = start + "PRIVATE KEY".len();
        whole.push_str(&rest[..body]);
        rest = &rest[body..];
        let Some(after) = rest.strip_prefix("-----").or_else(|| rest.strip_prefix(" BLOCK-----")) else { continue };
        whole.push_str(&rest[..rest.len() - after.len()]);
        whole.push_str(MASK);
        let end = after.find(END).unwrap_or(after.len());
        // The last line has the words once more.
        let last = &after[end..];
        let closing = last.find("KEY").map_or(last.len(), |at| at + "KEY".len());
        whole.push_str(&last[..closing]);
        rest = &last[closing..];
    }
    whole.push_str(rest);
    Cow::Owned(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_compiles() {
        assert!(FORMATS.len() > 150);
        for format in FORMATS.iter() {
            assert!(!format.keywords.is_empty() && format.keywords.iter().all(|word| *word == word.to_lowercase()));
            assert!(!format.regex.is_match(""), "{}", format.regex.as_str());
        }
    }

    #[test]
    fn keys_of_known_form_are_masked() {
        let rest = "0123456789abcdefghijABCDEFGHIJ0123456789";
        for start in ["ghp_", "github_pat_", "glpat-", "hvs.", "npm_", "dckr_pat_", "ya29.", "tskey-", "hf_"] {
            for (before, after) in [("", ""), ("x=", "&y"), ("https://", "@h/"), ("(", ")")] {
                let masked = mask(&format!("{before}{start}{rest}{after}"), false);
                assert_eq!(masked, format!("{before}{MASK}{after}"), "{start}");
            }
        }
    }

    #[test]
    fn a_private_key_is_masked_and_its_frame_stays() {
        let text = "x -----BEGIN RSA PRIVATE KEY-----\nS3CR3T\n-----END RSA PRIVATE KEY----- y";
        assert_eq!(mask(text, false), "x -----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY----- y");
        assert_eq!(mask("-----BEGIN PRIVATE KEY-----S3CR3T", false), "-----BEGIN PRIVATE KEY-----***");
    }
}
