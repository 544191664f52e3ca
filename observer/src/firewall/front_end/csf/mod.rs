//! CSF, ConfigServer Security & Firewall.

use super::{FrontEnd, Target, line, plan::plain};
use crate::model::NamedRule;

pub(super) struct Csf;

/// Mail goes out for some users alone.
const MAIL: &str = "SMTPOUTPUT";
/// Addresses that were denied: by `csf.deny`, by a list of all servers.
const DENIED: [&str; 2] = ["DENYOUT", "GDENYOUT"];

impl FrontEnd for Csf {
    fn name(&self) -> &'static str {
        "csf"
    }

    fn chain_prefixes(&self) -> &'static [&'static str] {
        &["LOGDROPOUT", "LOCALOUTPUT", DENIED[0], DENIED[1], MAIL]
    }

    fn advice(&self, rule: &NamedRule, target: &Target) -> Option<String> {
        // What is logged first is dropped by a chain of its own.
        let comes_by = |chain: &str| rule.chain == chain || rule.path.iter().any(|passed| passed == chain);
        if comes_by(MAIL) {
            return Some(
                "CSF's SMTP_BLOCK lets only some users send mail: send by the local mail server, or add the user to SMTP_ALLOWUSER (or \
                 its group to SMTP_ALLOWGROUP) in /etc/csf/csf.conf, then `csf -r`"
                    .to_owned(),
            );
        }
        if let Some(list) = DENIED.into_iter().find(|list| comes_by(list)) {
            let named = rule.words().and_then(|words| line::value(words, "-d")).and_then(plain);
            let address = named.map(|named| named.trim_end_matches("/32").trim_end_matches("/128").to_owned());
            let address = address.or_else(|| target.addresses.first().map(ToString::to_string))?;
            return Some(if list == DENIED[0] {
                format!("the address is in CSF's list of denied ones (csf.deny): `csf -dr {address}` takes it out")
            } else {
                format!("a list for all servers (GLOBAL_DENY of csf.conf) denies {address}: take it out there")
            });
        }
        let (list, newer) = if target.transport == "udp" { ("UDP_OUT", "UDP6_OUT") } else { ("TCP_OUT", "TCP6_OUT") };
        Some(format!(
            "CSF made this rule: add {} to {list} (and {newer}) in /etc/csf/csf.conf, then `csf -r`",
            target.port
        ))
    }
}
