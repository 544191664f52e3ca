//! Noise, evidence, shares: in simulated time.

use jiff::Timestamp;
use uuid::Uuid;

use super::*;
use crate::{
    model::{Line, Share},
    store::{
        entry::Entry,
        lab::{Lab, change, packet},
    },
};

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

fn limits(bytes: u64) -> Limits {
    Limits { age: Duration::from_secs(30 * 86_400), bytes, rest: 0 }
}

fn packets(lines: &[Line]) -> u64 {
    lines.iter().filter_map(Line::attempt).map(|attempt| attempt.packets).sum()
}

#[test]
fn lines_fold_to_minutes_and_hours_with_their_sums() {
    let mut lab = Lab::new();
    lab.store(&(0..2 * HOUR).step_by(10).map(|second| packet(1, second, 0)).collect::<Vec<_>>());
    lab.tidy(&limits(1 << 30), 3 * HOUR);
    let lines = lab.lines();
    // The first and the last stand by themselves.
    assert_eq!((lines.len(), packets(&lines)), (120 + 2, 1440));
    assert_eq!(lines[0].at, Timestamp::UNIX_EPOCH);
    assert_eq!(lines.last().unwrap().at, Timestamp::from_second(2 * HOUR - 10).unwrap());
    lab.tidy(&limits(1 << 30), 3 * DAY);
    let lines = lab.lines();
    assert_eq!((lines.len(), packets(&lines)), (2 + 2, 1440));
    assert_eq!(lab.number("SELECT sum(folded) FROM lines"), 720);
    assert_eq!(lab.number("SELECT lines FROM stories"), 4);
}

#[test]
fn what_is_old_goes_with_its_texts() {
    let mut lab = Lab::new();
    lab.store(&[packet(1, 0, 0), packet(1, 10, 0), packet(2, 0, 1000), packet(2, 20 * DAY, 1000)]);
    lab.tidy(&limits(1 << 30), 31 * DAY);
    let lines = lab.lines();
    assert_eq!(lines.len(), 2, "the second story goes on, and has its first line");
    assert_eq!(lab.number("SELECT count(*) FROM processes"), 1);
    assert_eq!(lab.number("SELECT count(*) FROM shares"), 1);
    lab.tidy(&limits(1 << 30), 60 * DAY);
    assert!(lab.lines().is_empty());
    assert_eq!(lab.number("SELECT count(*) FROM parts") + lab.number("SELECT count(*) FROM stories"), 0);
}

/// Of a week ago, while a thousand flows are blocked for a day.
#[test]
fn noise_never_evicts_evidence() {
    let mut lab = Lab::new();
    lab.store(&(0..40).map(|at| packet(1, at, 0)).collect::<Vec<_>>());
    let limits = limits(4 << 20);
    for half_hour in 0..48 {
        let second = 7 * DAY + half_hour * 1800;
        lab.store(&(0..1000).map(|flow| packet(100 + flow, second, 0)).collect::<Vec<_>>());
        lab.tidy(&limits, second + 1800);
        assert!(Room::of(&lab.writer.connection).unwrap().used <= limits.bytes);
    }
    let lines = lab.lines();
    let evidence: Vec<&Line> = lines
        .iter()
        .filter(|line| line.attempt().is_some_and(|attempt| attempt.incident == Uuid::from_u128(1)))
        .collect();
    assert_eq!(evidence.first().unwrap().at, Timestamp::UNIX_EPOCH);
    assert_eq!(evidence.last().unwrap().at, Timestamp::from_second(39).unwrap());
    // Of each flow too the first and the last line, and the sum of all.
    assert_eq!(lab.number("SELECT count(*) FROM stories WHERE lines >= 2"), 1001);
    assert_eq!(lab.number("SELECT sum(packets) FROM stories"), 80 + 48 * 1000 * 2);
}

#[test]
fn a_stranger_pushes_out_only_his_own() {
    let mut lab = Lab::new();
    lab.store(&(0..100).map(|story| packet(story, 0, 0)).collect::<Vec<_>>());
    lab.store(&(0..50).map(|story| packet(200 + story, 0, 1001)).collect::<Vec<_>>());
    let before = lab.number("SELECT count(*) FROM stories");
    for round in 0..20 {
        let flood: Vec<Entry> =
            (0..500).map(|at| packet(u128::from(10_000 + round * 500 + at as u32), 1, 1000)).collect();
        lab.store(&flood);
        lab.tidy(&limits(2 << 20), 2);
    }
    let of = |name: &str| {
        lab.number(&format!("SELECT count(*) FROM stories s JOIN shares h ON h.id = s.share WHERE h.name = '{name}'"))
    };
    assert_eq!((before, of("root"), of("user 1001")), (150, 100, 50));
    assert!(of("user 1000") < 10_000, "{}", of("user 1000"));
}

#[test]
fn changes_of_rules_push_out_only_those_of_their_namespace() {
    let mut lab = Lab::new();
    lab.store(&(0..100).map(|story| packet(story, 0, 0)).collect::<Vec<_>>());
    lab.store(&[change(1, 8, 0)]);
    for round in 0..20 {
        lab.store(&(0..500).map(|at| change(10 + round * 500 + at, 7, 0)).collect::<Vec<_>>());
        lab.tidy(&limits(2 << 20), 20_000);
    }
    let changes = |netns: u32| {
        let sql = "SELECT count(*) FROM lines l JOIN shares h ON h.id = l.share WHERE h.name";
        lab.number(&format!("{sql} = 'network namespace {netns}'"))
    };
    assert_eq!((lab.number("SELECT count(*) FROM stories"), changes(8)), (100, 1));
    assert!(changes(7) < 1000, "{}", changes(7));
    assert_eq!(lab.number("SELECT max(at_ns) / 1000000000 FROM lines"), 10 + 20 * 500 - 1, "the last one is there");
}

#[test]
fn texts_of_the_host_stay_as_long_as_anybodys_incident() {
    let mut lab = Lab::new();
    lab.keep(1, "of the host", Share::Host);
    lab.store(&[packet(1, 5, 33), packet(1, 39 * DAY, 33)]);
    lab.tidy(&limits(1 << 30), 40 * DAY);
    assert_eq!(lab.number("SELECT count(*) FROM states"), 1, "the rules were those when it began");
    lab.tidy(&limits(1 << 30), 80 * DAY);
    assert_eq!(lab.number("SELECT (SELECT count(*) FROM states) + (SELECT count(*) FROM stories)"), 0);
}

#[test]
fn changes_of_rules_within_an_incident_stay_with_it() {
    let mut lab = Lab::new();
    let of_the_namespace = |story: u128, second| {
        let mut entry = packet(story, second, 0);
        entry.share = "network namespace 7".to_owned();
        entry
    };
    lab.store(&[of_the_namespace(1, 0), change(5, 7, 0), of_the_namespace(1, 100)]);
    for round in 0..10 {
        lab.store(&(0..500).map(|at| of_the_namespace(2 + round * 500 + at, 200)).collect::<Vec<_>>());
    }
    let all = |lab: &Lab| {
        (
            lab.number("SELECT count(*) FROM stories WHERE first_ns = 0"),
            lab.number("SELECT count(*) FROM lines WHERE at_ns = 5000000000"),
        )
    };
    assert_eq!(all(&lab), (1, 1));
    lab.tidy(&limits(4 << 20), 300);
    assert!(lab.number("SELECT count(*) FROM stories") < 5001, "nothing had to go");
    let (stories, changes) = all(&lab);
    assert!(changes >= stories, "the change went, and its incident stays");
}

#[test]
fn the_weight_of_a_share_is_that_of_its_rows() {
    let mut lab = Lab::new();
    lab.store(&(0..2 * HOUR).step_by(60).map(|second| packet(1, second, 1000)).collect::<Vec<_>>());
    lab.store(&(0..50).map(|story| packet(100 + story, 0, 0)).collect::<Vec<_>>());
    lab.store(&(0..50).map(|at| change(at, 7, 0)).collect::<Vec<_>>());
    for (second, text) in [(1, "one"), (2, "one"), (3, "other"), (4, "one")] {
        lab.keep(second, text, Share::Namespace(7));
    }
    assert_eq!(lab.number("SELECT 10 * (SELECT count(*) FROM states) + (SELECT count(*) FROM documents)"), 32);
    let differ = "SELECT count(*) FROM shares s WHERE weight <>
           (SELECT 200 * count(*) FROM lines WHERE share = s.id) + (SELECT 300 * count(*) FROM stories WHERE share = s.id)
         + (SELECT coalesce(sum(200 + length(body)), 0) FROM parts WHERE share = s.id)
         + (SELECT coalesce(sum(200 + length(body)), 0) FROM processes WHERE share = s.id)
         + (SELECT coalesce(sum(200 + length(body)), 0) FROM documents WHERE share = s.id)
         + (SELECT 300 * count(*) FROM states WHERE share = s.id)";
    assert_eq!(lab.number(differ), 0);
    lab.tidy(&limits(1 << 30), 3 * DAY);
    assert_eq!(lab.number(differ), 0);
    lab.tidy(&limits(1 << 30), 40 * DAY);
    assert_eq!(lab.number("SELECT count(*) FROM shares"), 0);
    assert_eq!(lab.number("SELECT (SELECT count(*) FROM states) + (SELECT count(*) FROM documents)"), 0);
}
