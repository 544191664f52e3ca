use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv6Addr},
};

use observer_ebpf::abi::RuleAnswer;

use super::*;
use crate::model::{Fix, Origin, Owner, OwnerSource, Packet, RestoredBy, Scope, User};

/// What is known of an attempt that a rule with this text stopped, seen live.
pub(super) fn sight(text: Option<&str>) -> Sight {
    let rule = text.map(|text| Decision { rule: Some(NamedRule::example(text)), decider: None });
    Sight {
        answer: Some(RuleAnswer { netns_cookie: 5, function: 7, table: 1, chain: 2, rule: 3 }),
        decision: rule.map(Arc::new),
        is_replayed: false,
        is_copied_next: false,
        is_unread: false,
        wanted: Some(WantedRule {
            netns: 1,
            netns_cookie: 5,
            function: 7,
            table: 1,
            chain: 2,
            rule: 3,
            hook: None,
            v6: Some(false),
        }),
        packet: None,
        share: Share::Host,
        port: Some(40_000),
        cause: Cause::Netfilter,
        times: (1_000_000_000, 1_000_000_000),
        gid: None,
        begins: true,
    }
}

/// Answers what it was given, and remembers what is awaited.
#[derive(Default)]
struct Answers {
    rules: VecDeque<Decision>,
    fixes: VecDeque<Remedy>,
    asked: Vec<Stopped>,
    awaited: Vec<(AwaitedKey, bool)>,
}

impl Lookup for Answers {
    fn rule(&mut self, _: Share, _: &WantedRule, _: bool) -> Poll<Option<Arc<Decision>>> {
        match self.rules.pop_front() {
            Some(decision) => Poll::Ready(Some(Arc::new(decision))),
            None => Poll::Pending,
        }
    }

    fn fix(&mut self, _: Share, stopped: &Stopped, _: bool) -> Poll<Result<Remedy, String>> {
        self.asked.push(stopped.clone());
        self.fixes.pop_front().map_or(Poll::Pending, |remedy| Poll::Ready(Ok(remedy)))
    }

    fn await_destination(&mut self, key: &AwaitedKey, is_awaited: bool) -> Result<(), String> {
        self.awaited.push((*key, is_awaited));
        Ok(())
    }

    fn await_answers(&mut self, _: Duration) {}

    fn home(&mut self, attempt: &Attempt) -> Option<u32> {
        attempt.netns
    }
}

/// An attempt that a rule stopped, as the explainer hands it over.
fn stopped(sight: &Sight) -> Attempt {
    let mut attempt = Attempt::example();
    if let Some(decision) = &sight.decision {
        finding::enter(&mut attempt, decision);
    }
    attempt
}

fn take(incidents: &mut Incidents, sight: &Sight, table: &mut Answers) -> Attempt {
    let mut attempt = stopped(sight);
    incidents.take(&mut attempt, sight, table, Instant::now());
    attempt
}

fn count(incidents: &mut Incidents, attempt: &Attempt, share: Share) -> Snapshot {
    incidents.count(attempt, share, Instant::now())
}

fn news(incidents: &mut Incidents, table: &mut Answers) -> Vec<News> {
    incidents.news(table, |_, _| false, Instant::now(), false)
}

fn decision(text: &str) -> Decision {
    Decision { rule: Some(NamedRule::example(text)), decider: None }
}

#[test]
fn repeats_are_one_story_and_other_users_another() {
    let (mut incidents, mut table) = (Incidents::new(false, None), Answers::default());
    let sight = sight(Some("drop"));
    let first = take(&mut incidents, &sight, &mut table);
    let told = count(&mut incidents, &first, Share::Host);
    assert_eq!(told.others, 0);
    let mut other = stopped(&sight);
    other.sender = Sender::example("/usr/bin/curl", 8);
    incidents.take(&mut other, &sight, &mut table, Instant::now());
    assert_eq!(other.incident, first.incident);
    assert_eq!(count(&mut incidents, &other, Share::Host), Snapshot { others: 1, ..told });
    assert_eq!(count(&mut incidents, &other, Share::Host).others, 1, "the same process again");
    let mut anothers = other.clone();
    anothers.sender.user = anothers.sender.user.map(|user| User { id: 1000, ..user });
    let anothers = count(&mut incidents, &anothers, Share::Host);
    assert!(anothers.story != told.story && anothers.others == 0);
}

/// An attempt to the destination with this number.
fn to(number: u64, sight: &Sight) -> Attempt {
    let mut attempt = stopped(sight);
    let end = attempt.destination.as_mut().unwrap();
    end.ip = IpAddr::from(Ipv6Addr::from(u128::from(number)));
    attempt
}

#[test]
fn whoever_causes_many_incidents_makes_room_among_its_own() {
    let (mut incidents, mut table) = (Incidents::new(false, None), Answers::default());
    let unread = Sight { is_unread: true, ..sight(None) };
    let roots = take(&mut incidents, &unread, &mut table);
    count(&mut incidents, &roots, Share::Host);
    let strangers = Sight { share: Share::User(1000), ..sight(Some("drop")) };
    for number in 0..2 * MAX_INCIDENTS as u64 {
        let mut attempt = to(number, &strangers);
        incidents.take(&mut attempt, &strangers, &mut table, Instant::now());
        count(&mut incidents, &attempt, strangers.share);
    }
    let of_the_share = incidents.table.of(strangers.share, Instant::now());
    assert_eq!(of_the_share.len(), MAX_INCIDENTS_OF_A_SHARE);
    for number in 0..2 * MAX_SHARES as u32 {
        incidents.table.of(Share::User(number), Instant::now());
    }
    assert_eq!(incidents.table.others.len(), MAX_SHARES);
    let again = take(&mut incidents, &sight(Some("drop")), &mut table);
    assert_eq!(again.incident, roots.incident, "root's is remembered, and keeps the id of its first packet");
    let mut other = again;
    other.sender = Sender::example("/usr/bin/curl", 8);
    assert_eq!(count(&mut incidents, &other, Share::Host).others, 1);
}

#[test]
fn processes_and_parties_are_bounded() {
    let (mut incidents, mut table) = (Incidents::new(false, None), Answers::default());
    let mut attempt = take(&mut incidents, &sight(Some("drop")), &mut table);
    for pid in 0..2 * MAX_PIDS as u32 {
        attempt.sender = Sender::example("/usr/bin/curl", pid);
        count(&mut incidents, &attempt, Share::Host);
    }
    let told = count(&mut incidents, &attempt, Share::Host);
    assert_eq!((told.others, told.are_more), (MAX_PIDS - 1, true));
    let story = count(&mut incidents, &attempt, Share::Host).story;
    for netns in 100..100 + MAX_PARTIES as u32 {
        attempt.netns = Some(netns);
        count(&mut incidents, &attempt, Share::Host);
    }
    attempt.netns = Some(1);
    let again = count(&mut incidents, &attempt, Share::Host);
    assert_eq!(
        again,
        Snapshot { story, others: 0, are_more: false, share: Some(Share::Host) },
        "its processes are forgotten, and it is the same story still"
    );
}

#[test]
fn a_rule_that_comes_late_keeps_the_id_and_is_told_once() {
    let (mut incidents, mut table) = (Incidents::new(false, None), Answers::default());
    let unread = Sight { is_unread: true, ..sight(None) };
    let first = take(&mut incidents, &unread, &mut table);
    assert!(incidents.rules_may_come() && news(&mut incidents, &mut table).is_empty());
    table.rules.push_back(decision("drop"));
    let told = incidents.news(&mut table, |_, _| false, Instant::now() + Duration::from_secs(1), false);
    let [News { kind: Kind::Rule(attempt), .. }] = told.as_slice() else { panic!("{}", told.len()) };
    assert_eq!((attempt.incident, attempt.packets), (first.incident, 0));
    assert!(attempt.finding.as_ref().unwrap().starts_with("nft rule `drop`"));
    let next = take(&mut incidents, &sight(Some("drop")), &mut table);
    assert_eq!(next.incident, first.incident, "an id, once given, stays");
    assert!(news(&mut incidents, &mut table).is_empty());
    let other = take(&mut incidents, &sight(Some("reject")), &mut table);
    assert_ne!(other.incident, first.incident);
}

#[test]
fn what_is_no_rule_comes_late_too() {
    let (mut incidents, mut table) = (Incidents::new(false, None), Answers::default());
    let of_a_function = RuleAnswer { netns_cookie: 5, function: 7, table: 0, chain: 0, rule: 0 };
    let unread = Sight { is_unread: true, answer: Some(of_a_function), ..sight(None) };
    let unread = Sight { wanted: unread.wanted.map(|wanted| WantedRule { chain: 0, rule: 0, ..wanted }), ..unread };
    let first = take(&mut incidents, &unread, &mut table);
    let decider = crate::model::Decider { function: Some("ipv4_conntrack_local".to_owned()), ..Default::default() };
    table.rules.push_back(Decision { rule: None, decider: Some(decider.clone()) });
    let told = news(&mut incidents, &mut table);
    let [News { kind: Kind::Rule(attempt), .. }] = told.as_slice() else { panic!("{}", told.len()) };
    assert_eq!((attempt.cause, &attempt.decided_by), (Some(Cause::Conntrack), &Some(decider.clone())));
    let known = Sight { decision: Some(Arc::new(Decision { rule: None, decider: Some(decider) })), ..unread };
    let known = Sight { is_unread: false, ..known };
    let next = take(&mut incidents, &known, &mut table);
    assert_eq!(next.incident, first.incident, "also where its cause is another one now");
}

#[test]
fn a_rule_that_a_later_packet_names_is_told_for_the_first_ones() {
    let (mut incidents, mut table) = (Incidents::new(false, None), Answers::default());
    let by_chain = |sight: Sight| Sight {
        answer: sight.answer.map(|answer| RuleAnswer { rule: UNKNOWN_RULE, ..answer }),
        ..sight
    };
    let first = take(&mut incidents, &by_chain(sight(None)), &mut table);
    let second = take(&mut incidents, &sight(Some("drop")), &mut table);
    assert_eq!(second.incident, first.incident);
    let told = news(&mut incidents, &mut table);
    assert!(matches!(told.as_slice(), [News { kind: Kind::Rule(_), .. }]));
    take(&mut incidents, &sight(Some("drop")), &mut table);
    assert!(news(&mut incidents, &mut table).is_empty(), "once");
}

fn packet() -> Packet {
    let origin = Origin::Socket { uid: 0, gid: 0, groups: Vec::new(), mark: 0, cgroup: None };
    Packet::syn("10.0.0.1:40000".parse().unwrap(), "203.0.113.10:443".parse().unwrap(), origin).unwrap()
}

fn fix() -> Fix {
    Fix {
        commands: vec!["ufw allow out 443/tcp".to_owned()],
        undo: Vec::new(),
        scope: Some(Scope::Port),
        opens: None,
        lasts: None,
        verified: true,
        verified_for: Vec::new(),
        undo_verified: None,
        unverified: None,
        note: None,
        place: None,
        probes: Vec::new(),
        opened: None,
        others: Vec::new(),
    }
}

#[test]
fn one_fix_is_looked_for_for_a_rule_and_a_port() {
    let (mut incidents, mut table) = (Incidents::new(true, None), Answers::default());
    let sight = Sight { packet: Some(packet()), ..sight(Some("drop")) };
    let first = take(&mut incidents, &sight, &mut table);
    take(&mut incidents, &sight, &mut table);
    assert!(incidents.is_waiting() && !incidents.rules_may_come());
    table.fixes.push_back(Remedy::Is(Box::new(fix())));
    let told = news(&mut incidents, &mut table);
    let [News { kind: Kind::Fix(attempt, told), .. }] = told.as_slice() else { panic!("{}", told.len()) };
    assert_eq!((attempt.incident, &**told), (first.incident, &fix()));
    assert!(!incidents.is_waiting());
    take(&mut incidents, &sight, &mut table);
    assert!(!incidents.is_waiting(), "asked once");
    incidents.ruleset_is_changing(2);
    take(&mut incidents, &sight, &mut table);
    assert!(!incidents.is_waiting(), "another namespace's rules have changed");
    incidents.ruleset_is_changing(1);
    take(&mut incidents, &sight, &mut table);
    assert!(incidents.is_waiting(), "rules have changed, and it is stopped still");
    incidents.ruleset_is_changing(1);
    table.fixes.push_back(Remedy::Is(Box::new(Fix { verified: false, ..fix() })));
    assert!(news(&mut incidents, &mut table).is_empty(), "it may pass by now: only what was tested counts");
    take(&mut incidents, &sight, &mut table);
    assert!(incidents.is_waiting(), "it is stopped still");
    assert_eq!(table.asked.len(), 2);
}

#[test]
fn nobodys_traffic_gets_no_fix_and_is_not_awaited() {
    let (mut incidents, mut table) = (Incidents::new(true, None), Answers::default());
    let sight = Sight { packet: Some(packet()), ..sight(Some("drop")) };
    let mut attempt = stopped(&sight);
    attempt.background = Some(crate::model::Background::Mdns);
    incidents.take(&mut attempt, &sight, &mut table, Instant::now());
    assert!(!incidents.is_waiting() && table.awaited.is_empty());
}

#[test]
fn fixes_of_one_account_do_not_crowd_out_others() {
    let (mut incidents, mut table) = (Incidents::new(true, None), Answers::default());
    for number in 0..100 {
        let text = format!("drop {number}");
        let strangers = Sight { packet: Some(packet()), share: Share::User(1000), ..sight(Some(&text)) };
        take(&mut incidents, &strangers, &mut table);
    }
    let hosts = Sight { packet: Some(packet()), ..sight(Some("drop")) };
    take(&mut incidents, &hosts, &mut table);
    table.fixes.push_back(Remedy::None);
    news(&mut incidents, &mut table);
    assert_eq!(table.asked[0].rule.text.as_deref(), Some("drop"), "root's goes before its users'");
}

fn reached(boot_ns: u64) -> Reached {
    let task = observer_ebpf::abi::Task { pid: 7, ..Default::default() };
    Reached {
        boot_ns,
        owner: Some(Owner { task, bound_ns: None, source: OwnerSource::Connect, shared: false }),
        uid: 0,
        gid: None,
        netns: 1,
        protocol: 6,
        local: "10.0.0.1:40001".parse().unwrap(),
        remote: "203.0.113.10:443".parse().unwrap(),
        is_given_up: false,
    }
}

#[test]
fn a_connection_that_was_given_up_is_told_with_how_long_it_waited() {
    let (mut incidents, mut table) = (Incidents::new(false, None), Answers::default());
    let first = take(&mut incidents, &sight(Some("drop")), &mut table);
    let (at, now) = (Timestamp::UNIX_EPOCH + Duration::from_secs(9), Instant::now());
    let owner = reached(0).owner.map(|owner| Owner { bound_ns: Some(1_000_000_000), ..owner });
    let given_up = |boot_ns| Reached { is_given_up: true, owner, ..reached(boot_ns) };
    incidents.reached(given_up(2_000_000_000), Sender::example("/usr/bin/wget", 9), at, now);
    assert!(news(&mut incidents, &mut table).is_empty(), "another program's");
    // The first packet was blocked at 1 s, and an application that gives up at once has not waited.
    incidents.reached(given_up(1_500_000_000), Sender::example("/usr/bin/curl", 7), at, now);
    assert!(news(&mut incidents, &mut table).is_empty(), "half a second is no wait");
    incidents.reached(given_up(3_500_000_000), Sender::example("/usr/bin/curl", 7), at, now);
    let told = news(&mut incidents, &mut table);
    let [News { kind: Kind::Outcome(attempt, outcome), .. }] = told.as_slice() else { panic!("{}", told.len()) };
    assert_eq!((attempt.incident, outcome.sentence().as_str()), (first.incident, "gave up after 2.5s"));
}

#[test]
fn what_works_again_is_told_for_whom_it_was_blocked() {
    let (mut incidents, mut table) = (Incidents::new(false, None), Answers::default());
    let first = take(&mut incidents, &sight(Some("drop")), &mut table);
    assert!(matches!(table.awaited.as_slice(), [(_, true)]));
    let (at, now) = (Timestamp::UNIX_EPOCH, Instant::now());
    let sender = Sender::example("/usr/bin/curl", 9);
    incidents.reached(reached(500), sender.clone(), at, now);
    incidents.reached(reached(2_000_000_000), Sender::example("/usr/bin/wget", 9), at, now);
    incidents.reached(reached(3_000_000_000), sender, at, now);
    assert!(news(&mut incidents, &mut table).is_empty(), "changes of rules may not be heard yet");
    let told = incidents.news(&mut table, |_, _| false, now + Duration::from_secs(1), false);
    let [News { kind: Kind::Restored(attempt, restored), .. }] = told.as_slice() else { panic!("{}", told.len()) };
    assert_eq!((attempt.incident, restored.by, restored.after_ms), (first.incident, RestoredBy::Connection, 2_000));
    assert_eq!((attempt.sender.words().as_str(), attempt.packets), ("curl[9]", 0));
    assert!(matches!(table.awaited.as_slice(), [_, (_, false)]), "not awaited any more");
}

#[test]
fn a_change_of_rules_that_came_before_is_named() {
    let (mut incidents, mut table) = (Incidents::new(false, None), Answers::default());
    take(&mut incidents, &sight(Some("drop")), &mut table);
    let change = RulesetChange {
        netns: 1,
        entering: None,
        is_elsewhere: false,
        ruleset: crate::model::ChangedRuleset {
            backend: crate::model::Backend::Nft,
            generation: Some(2),
            changed_by: None,
            changes: 1,
            difference: None,
        },
        sender: Sender::default(),
        share: Share::Host,
    };
    let id = Some(Uuid::from_u128(9));
    incidents.ruleset_changed(2_000_000_000, Timestamp::UNIX_EPOCH, id, &change);
    let (at, now) = (Timestamp::UNIX_EPOCH, Instant::now());
    incidents.reached(reached(3_000_000_000), Sender::example("/usr/bin/curl", 9), at, now);
    let later = now + Duration::from_secs(1);
    assert!(incidents.news(&mut table, |netns, _| netns == 1, later, false).is_empty(), "it is to be told first");
    let told = incidents.news(&mut table, |_, _| false, later, false);
    let [News { kind: Kind::Restored(_, restored), .. }] = told.as_slice() else { panic!("{}", told.len()) };
    let change = restored.change.as_ref().unwrap();
    assert_eq!((change.id, change.before_ms), (id, 1_000));
}
