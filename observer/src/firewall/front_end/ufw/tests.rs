//! ufw's statements, and files that disagree with what is in force.

use std::fs;

use super::{
    tuples::{number, of_hexadecimal, parse},
    words::statement,
};
use crate::{
    firewall::{
        files::Root,
        front_end::Place,
        netfilter::family,
        nft::{Chain, Rule, RuleVerdict},
    },
    model::{Backend, Entrance, NamedRule, Statement},
};

/// What ufw 0.36.2 wrote for the statements below, in their order.
const USER: &str = "*filter
:ufw-user-output - [0:0]
### RULES ###

### tuple ### deny tcp 443 0.0.0.0/0 any 0.0.0.0/0 out comment=68617264656e696e672032303233
-A ufw-user-output -p tcp --dport 443 -j DROP

### tuple ### deny any 53 0.0.0.0/0 any 0.0.0.0/0 out
-A ufw-user-output -p tcp --dport 53 -j DROP
-A ufw-user-output -p udp --dport 53 -j DROP

### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in
-A ufw-user-input -p tcp --dport 22 -j ACCEPT

### tuple ### deny_log tcp 8000 0.0.0.0/0 any 0.0.0.0/0 out
-A ufw-user-logging-output -p tcp --dport 8000 -j RETURN
-A ufw-user-output -p tcp --dport 8000 -j ufw-user-logging-output
-A ufw-user-output -p tcp --dport 8000 -j DROP

### tuple ### deny tcp 8080 0.0.0.0/0 any 0.0.0.0/0 My%20App - out
-A ufw-user-output -p tcp --dport 8080 -j DROP -m comment --comment 'dapp_My%20App'

### tuple ### deny udp 9090:9095 0.0.0.0/0 any 0.0.0.0/0 My%20App - out
-A ufw-user-output -p udp -m multiport --dports 9090:9095 -j DROP -m comment --comment 'dapp_My%20App'

### tuple ### route:deny any any 203.0.113.9 any 0.0.0.0/0 in_eth0!out_eth1
-A ufw-user-forward -i eth0 -o eth1 -d 203.0.113.9 -j DROP

### tuple ### deny any any 2.2.2.2 any 10.9.0.1 out
-A ufw-user-output -d 2.2.2.2 -s 10.9.0.1 -j DROP

### END RULES ###
-A ufw-user-limit -j REJECT
COMMIT
";

fn rule(verdict: Option<RuleVerdict>) -> Rule {
    Rule {
        family: family::IPV4,
        table: "filter".to_owned(),
        chain: "ufw-user-output".to_owned(),
        handle: 1,
        verdicts: verdict.into_iter().collect(),
        packets: None,
    }
}

/// The rules in force, as ufw made them.
fn in_force() -> Vec<Rule> {
    let mut rules: Vec<Rule> = (0..8).map(|_| rule(Some(RuleVerdict::Drop))).collect();
    rules[3] = rule(Some(RuleVerdict::Chain("ufw-user-logging-output".to_owned())));
    rules
}

fn told(rules: &[Rule], chain: &str, position: Option<usize>, text: &str, root: &std::path::Path) -> Option<Statement> {
    let named = NamedRule {
        backend: Backend::Nft,
        family: "ip".to_owned(),
        table: "filter".to_owned(),
        chain: chain.to_owned(),
        handle: position.map(|position| position as u64),
        position,
        text: Some(text.to_owned()),
        path: Vec::new(),
        verdict: None,
        ruleset_sha256: None,
        statement: None,
        translates: None,
        entrance: Entrance::Own,
        packet: None,
        leads_to: None,
        translated: None,
        sees_forwarded: false,
    };
    let chains = ["OUTPUT", "ufw-user-output"].map(|name| Chain {
        family: family::IPV4,
        table: "filter".to_owned(),
        name: name.to_owned(),
        handle: 1,
        hook: None,
        priority: None,
        policy: None,
    });
    let place = Place {
        named: &named,
        base: "OUTPUT",
        rules: &rules.iter().collect::<Vec<_>>(),
        all: &[],
        chains: &chains.iter().collect::<Vec<_>>(),
        saved: None,
    };
    statement(&place, &mut || Root::open(root).into_iter().collect())
}

fn files() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("etc/ufw")).unwrap();
    fs::create_dir_all(folder.path().join("etc/default")).unwrap();
    fs::write(folder.path().join("etc/ufw/user.rules"), USER).unwrap();
    folder
}

#[test]
fn rules_are_numbered_and_worded_as_ufw_does() {
    let files = files();
    let cases = [
        (1, "tcp dport 443 counter drop", "deny out 443/tcp", 1),
        (2, "tcp dport 53 counter drop", "deny out 53", 2),
        (3, "udp dport 53 counter drop", "deny out 53", 2),
        (5, "tcp dport 8000 counter drop", "deny out log 8000/tcp", 4),
        (6, "tcp dport 8080 counter drop", "deny out 'My App'", 5),
        (7, "udp dport 9090-9095 counter drop", "deny out 'My App'", 5),
        (8, "ip saddr 10.9.0.1 ip daddr 2.2.2.2 counter drop", "deny out from 10.9.0.1 to 2.2.2.2", 7),
    ];
    for (position, text, words, number) in cases {
        let told = told(&in_force(), "ufw-user-output", Some(position), text, files.path()).unwrap();
        assert_eq!((told.name.as_str(), told.number), (words, Some(number)), "{told:?}");
        assert_eq!(told.what, format!("ufw rule {number}"));
        assert_eq!(told.comment.as_deref(), (position == 1).then_some("hardening 2023"));
    }
    let routed = parse(USER, "").0.remove(6);
    assert_eq!(routed.words(), "route deny in on eth0 out on eth1 to 203.0.113.9");
}

#[test]
fn files_that_say_otherwise_are_not_believed() {
    let files = files();
    let differs = |rules: &[Rule], text: &str| {
        let told = told(rules, "ufw-user-output", Some(1), text, files.path()).unwrap();
        assert_eq!((told.number, told.name.as_str()), (None, text));
        assert!(told.note.is_some_and(|note| note.contains("changed without ufw")));
    };
    let mut one_more = in_force();
    one_more.insert(0, rule(Some(RuleVerdict::Drop)));
    differs(&one_more, "tcp dport 443 counter drop");
    let mut another = in_force();
    another[4] = rule(Some(RuleVerdict::Reject));
    differs(&another, "tcp dport 443 counter drop");
    differs(&in_force(), "tcp dport 80 counter drop");
}

#[test]
fn default_policies() {
    let files = files();
    let defaults = files.path().join("etc/default/ufw");
    let policy = || told(&[], "OUTPUT", None, "policy drop", files.path()).unwrap();
    fs::write(&defaults, "DEFAULT_OUTPUT_POLICY=\"DROP\"\n").unwrap();
    assert_eq!((policy().name.as_str(), policy().note), ("default deny outgoing", None));
    fs::write(&defaults, "DEFAULT_OUTPUT_POLICY=\"ACCEPT\"\n").unwrap();
    assert_eq!(policy().name, "-P OUTPUT DROP");
    assert!(policy().note.is_some_and(|note| note.contains("DEFAULT_OUTPUT_POLICY=ACCEPT")));
    let rejecting = told(&[], "ufw-reject-output", Some(1), "reject", files.path()).unwrap();
    assert_eq!(rejecting.name, "default reject outgoing");
}

#[test]
fn a_broken_file_breaks_nothing() {
    for tuple in ["", "deny", "deny tcp 443", "a b c d e f g h i j k", "deny tcp 443 x any y out comment=zz"] {
        let text = format!("### tuple ### {tuple}\n-A ufw-user-output -p tcp -j DROP 'unfinished\n-A\n-A x\n");
        let (_, lines) = parse(&text, "ufw-user-output");
        assert!(lines.is_empty(), "what is no words is left out, and the file then disagrees");
    }
    assert_eq!(of_hexadecimal("zz"), None);
    assert_eq!(of_hexadecimal("c3a4").as_deref(), Some("ä"));
    assert_eq!(of_hexadecimal("ä"), None);
}

#[test]
fn in_and_out_of_one_profile_are_two_entries() {
    let text = "### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 OpenSSH - in\n\
                ### tuple ### deny tcp 22 0.0.0.0/0 any 0.0.0.0/0 OpenSSH - out\n\
                ### tuple ### deny tcp 443 0.0.0.0/0 any 0.0.0.0/0 out\n";
    let (tuples, _) = parse(text, "");
    let numbers: Vec<u32> = (0..3).map(|index| number(&[], &tuples, index)).collect();
    assert_eq!(numbers, [1, 2, 3]);
}
