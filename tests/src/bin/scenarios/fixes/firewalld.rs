//! firewalld: policies, direct rules, panic mode.

use anyhow::Result;
use harness::lab::{FAR_V4, FAR_V6, Lab};

use super::{To, server, works};
use crate::{Outcome, front_ends};

fn rich(rule: &str) -> [String; 2] {
    ["", "--permanent "].map(|kept| format!("firewall-cmd {kept}--policy hostout --add-rich-rule '{rule}'"))
}

/// A policy's rules, and its target.
pub(super) fn policies() -> Result<Outcome> {
    if let Some(skipped) = front_ends::without_firewalld() {
        return Ok(skipped);
    }
    let address =
        "rule family=\"ipv4\" destination address=\"203.0.113.0/24\" port port=\"443\" protocol=\"tcp\" reject";
    let port = "rule port port=\"25\" protocol=\"tcp\" drop";
    let accept = |what: &str| format!("rule priority=\"-32768\" {what} accept");
    let narrow = accept("family=\"ipv4\" destination address=\"203.0.113.10\" port port=\"443\" protocol=\"tcp\"");
    let wide = accept("port port=\"25\" protocol=\"tcp\"");
    let asked = accept("family=\"ipv4\" destination address=\"203.0.113.10\" port port=\"53\" protocol=\"udp\"");
    let cases: [(&[&str], To<'_>, [String; 2]); 3] = [
        (&["--add-rich-rule", address], ("tcp", FAR_V4, 443), rich(&narrow)),
        (&["--add-rich-rule", port], ("tcp", FAR_V6, 25), rich(&wide)),
        (&["--set-target", "REJECT"], ("udp", FAR_V4, 53), rich(&asked)),
    ];
    for (options, to, commands) in cases {
        let mut lab = Lab::new()?;
        let _firewalld = front_ends::with_firewalld(&mut lab.client, &[options])?;
        let _server = server(&lab, to)?;
        let event = works(&lab.client, &lab.client, to, &commands.each_ref().map(String::as_str))?;
        super::tables::has_all_forms(&event)?;
    }
    Ok(Outcome::Passed)
}

/// A direct rule, and what stops everything.
pub(super) fn others() -> Result<Outcome> {
    if let Some(skipped) = front_ends::without_firewalld() {
        return Ok(skipped);
    }
    let mut lab = Lab::new()?;
    let _firewalld = front_ends::with_firewalld(&mut lab.client, &[])?;
    let rule = "ipv4 filter OUTPUT 0 -p udp --dport 7000 -j DROP";
    for kept in ["", "--permanent "] {
        lab.client.run("sh", &["-c", &format!("firewall-cmd {kept}--direct --add-rule {rule}")])?;
    }
    works(&lab.client, &lab.client, ("udp", FAR_V4, 7000), &[])?;
    lab.client.run("firewall-cmd", &["--panic-on"])?;
    works(&lab.client, &lab.client, ("udp", FAR_V6, 53), &["firewall-cmd --panic-off"])?;
    Ok(Outcome::Passed)
}
