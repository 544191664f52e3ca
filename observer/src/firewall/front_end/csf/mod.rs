//! CSF, ConfigServer Security & Firewall.

use super::FrontEnd;

pub(super) struct Csf;

impl FrontEnd for Csf {
    fn name(&self) -> &'static str {
        "csf"
    }

    fn chain_prefixes(&self) -> &'static [&'static str] {
        &["LOGDROPOUT", "LOCALOUTPUT", "DENYOUT"]
    }

    fn advice(&self) -> Option<&'static str> {
        Some(
            "CSF made this rule: add the port to TCP_OUT or UDP_OUT (and TCP6_OUT or UDP6_OUT) in /etc/csf/csf.conf, then `csf -r`",
        )
    }
}
