//! ufw's files, and what of them a trial copies.

use crate::firewall::front_end::{Load, Needs, Unjudged, iptables};

/// Folder of its files.
pub(super) const FOLDER: &str = "/etc/ufw";
/// Its default policies.
pub(super) const DEFAULTS: &str = "/etc/default/ufw";
/// Its settings, whether it is enabled among them.
pub(super) const SETTINGS: &str = "/etc/ufw/ufw.conf";
/// The administrator's rules.
pub(super) const USER: &str = "/etc/ufw/user.rules";
/// The same for IPv6.
pub(super) const USER6: &str = "/etc/ufw/user6.rules";

pub(super) const NEEDS: Needs = Needs {
    folders: &[FOLDER],
    files: &[DEFAULTS],
    planned_from: &[USER, USER6],
    noted_from: &[],
    hooks: &["/etc/ufw/before.init", "/etc/ufw/after.init"],
    shell_files: &[DEFAULTS, SETTINGS],
    variables: &[
        "DEFAULT_APPLICATION_POLICY",
        "DEFAULT_FORWARD_POLICY",
        "DEFAULT_INPUT_POLICY",
        "DEFAULT_OUTPUT_POLICY",
        "ENABLED",
        "IPT_MODULES",
        "IPT_SYSCTL",
        "IPV6",
        "LOGLEVEL",
        "MANAGE_BUILTINS",
    ],
    // It tries what the kernel can, whenever it is run.
    modules: &["xt_recent"],
    ..Needs::NOTHING
};

/// How a file of its rules is loaded: it takes the place of the one that it is.
pub(super) fn load(text: &str) -> Result<Option<Load>, Unjudged> {
    const OTHERS: [&str; 4] = ["ufw-before-", "ufw6-before-", "ufw-after-", "ufw6-after-"];
    const RULES: &str = "### RULES ###";
    let is_other = OTHERS.iter().any(|chain| text.contains(chain)) && !iptables::is_saved_by(text, "tables");
    if is_other && !text.contains(RULES) {
        return Err(Unjudged {
            why: "one of ufw's files beside its rules, which are not judged alone",
            remedy: "name its user.rules or user6.rules",
        });
    }
    let path = if iptables::is_v6(text) { USER6 } else { USER };
    let is_own = text.contains("### tuple ###") || text.contains(RULES);
    Ok(is_own.then_some(Load { before: None, path, command: &["ufw", "reload"], note: None }))
}
