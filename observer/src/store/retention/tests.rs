//! Noise, evidence, shares: in simulated time.

use jiff::Timestamp;
use uuid::Uuid;

use super::*;
use crate::{
    model::{Line, Share},
    store::{
        age::Now,
        entry::Entry,
        lab::{Lab, change, packet},
    },
};

const SECOND: i64 = 1_000_000_000;
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
           (SELECT 280 * count(*) FROM lines WHERE share = s.id) + (SELECT 480 * count(*) FROM stories WHERE share = s.id)
         + (SELECT coalesce(sum(weight), 0) FROM parts WHERE share = s.id)
         + (SELECT coalesce(sum(weight), 0) FROM processes WHERE share = s.id)
         + (SELECT coalesce(sum(weight), 0) FROM documents WHERE share = s.id)
         + (SELECT 300 * count(*) FROM states WHERE share = s.id)";
    assert_eq!(lab.number(differ), 0);
    lab.tidy(&limits(1 << 30), 3 * DAY);
    assert_eq!(lab.number(differ), 0);
    lab.tidy(&limits(1 << 30), 40 * DAY);
    assert_eq!(lab.number("SELECT count(*) FROM shares"), 0);
    assert_eq!(lab.number("SELECT (SELECT count(*) FROM states) + (SELECT count(*) FROM documents)"), 0);
}

/// Of a kind of line each, whose texts a stranger may choose.
#[test]
fn the_weight_of_a_share_is_what_it_takes() {
    let long = "\u{20000}".repeat(900);
    let kinds: [(&str, &dyn Fn(u32) -> Entry); 4] = [
        ("many stories", &|at| packet(u128::from(at), 1, 1000)),
        ("one story", &|at| packet(1, i64::from(at), 1000)),
        ("long arguments", &|at| {
            let mut entry = packet(1, i64::from(at), 1000);
            let who = entry.who.as_mut().unwrap();
            who.body = format!("{} {at} {long}", who.body);
            entry
        }),
        ("long paths", &|at| {
            let mut entry = packet(u128::from(at), i64::from(at), 1000);
            let who = entry.who.as_mut().unwrap();
            who.body = format!("{} {at}", who.body);
            who.executable = Some(long.clone());
            entry
        }),
    ];
    for (kind, entry) in kinds {
        let mut lab = Lab::new();
        let before = Room::of(&lab.writer.connection).unwrap().used;
        lab.store(&(0..3000).map(entry).collect::<Vec<_>>());
        let used = Room::of(&lab.writer.connection).unwrap().used - before;
        let weight = u64::try_from(lab.number("SELECT sum(weight) FROM shares")).unwrap();
        assert!((used * 80..used * 160).contains(&(weight * 100)), "{kind}: {weight} of {used} bytes");
    }
}

#[test]
fn a_clock_that_was_wrong_makes_nothing_old() {
    const YEAR: i64 = 365 * DAY;
    let mut lab = Lab::new();
    let now = |clock: i64, age: i64| Now { clock_ns: clock * SECOND, age_ns: age * SECOND };
    // In 1970, and in a year to come; then the clock is right, and was it all the time by the store's own time.
    lab.writer.store(&[packet(1, 0, 0), packet(2, 50 * YEAR, 0)], &[], None, 0).unwrap();
    lab.tidy_by(&limits(1 << 30), now(0, 40 * YEAR));
    lab.tidy_by(&limits(1 << 30), now(40 * YEAR + DAY, 40 * YEAR + DAY));
    assert_eq!(lab.lines().len(), 2);
    // A clock that is wrong just now.
    lab.writer.store(&[packet(3, 40 * YEAR + DAY, 0)], &[], None, 0).unwrap();
    lab.tidy_by(&limits(1 << 30), now(40 * YEAR + DAY, 40 * YEAR + DAY + 600));
    lab.tidy_by(&limits(1 << 30), now(60 * YEAR, 40 * YEAR + 2 * DAY));
    lab.tidy_by(&limits(1 << 30), now(0, 40 * YEAR + 3 * DAY));
    assert_eq!(lab.lines().len(), 3);
    lab.tidy_by(&limits(1 << 30), now(40 * YEAR + 31 * DAY + 1200, 40 * YEAR + 31 * DAY + 1200));
    assert!(lab.lines().is_empty(), "a month later they go, whatever their times are");
}

#[test]
fn a_run_goes_once_nothing_is_left_of_it() {
    let mut lab = Lab::new();
    lab.store(&[packet(1, 0, 0)]);
    lab.keep(1, "of the host", Share::Host);
    lab.writer.end(None, None, 10 * SECOND).unwrap();
    let reporter = serde_json::to_string(&crate::model::Reporter::example()).unwrap();
    lab.writer = crate::store::write::Writer::open(&lab.path, &reporter, 20 * DAY * SECOND).unwrap();
    lab.store(&[packet(2, 35 * DAY, 0)]);
    lab.tidy(&limits(1 << 30), 40 * DAY);
    assert_eq!((lab.lines().len(), lab.number("SELECT count(*) FROM runs")), (1, 2), "its rules are still in force");
    lab.keep(41 * DAY, "other", Share::Host);
    lab.store(&[packet(3, 42 * DAY, 0)]);
    lab.tidy(&limits(1 << 30), 80 * DAY);
    assert_eq!(lab.number("SELECT count(*) FROM runs"), 1);
}

#[test]
fn what_was_removed_to_make_room_is_noted() {
    let mut lab = Lab::new();
    for round in 0..4_u128 {
        lab.store(&(0..500).map(|at| packet(round * 500 + at, 1, 1000)).collect::<Vec<_>>());
        lab.store(&(0..50).map(|at| change(1, 100 + at, 0)).collect::<Vec<_>>());
        lab.tidy(&limits(1 << 20), 2);
    }
    assert_eq!(lab.number("SELECT (SELECT sum(folded) FROM lines) + (SELECT sum(lines) FROM gaps)"), 2200);
    assert_eq!(lab.number("SELECT (SELECT sum(packets) FROM lines) + (SELECT sum(packets) FROM gaps)"), 4000);
    assert_eq!(lab.number("SELECT count(*) FROM gaps WHERE why = 'removed to make room: lines of user 1000'"), 1);
    assert!(lab.number("SELECT count(*) FROM gaps") <= 2);
}
