use bytes::Bytes;

use super::*;
use crate::{
    model::{Background, Socket},
    privilege::{
        fake::Fake,
        protocol::{Request, encode},
    },
};

const RULE: u64 = 3;

/// A SYN of a local socket that a rule at the output hook dropped, seen live where `rule` is known.
fn dropped(rule: u64) -> Dropped {
    let origin = Origin::Socket { uid: 0, gid: 0, groups: Vec::new(), mark: 0, cgroup: None };
    let packet = Packet::syn("10.0.0.1:40000".parse().unwrap(), "203.0.113.10:443".parse().unwrap(), origin).unwrap();
    let example = Dropped::example();
    Dropped {
        endpoints: Some(Endpoints {
            source: "10.0.0.1".parse().unwrap(),
            destination: "203.0.113.10".parse().unwrap(),
            protocol: 6,
            source_port: Some(40_000),
            destination_port: Some(443),
        }),
        protocol: Some(6),
        tcp_flags: Some(2),
        netns: 1,
        rule: Some(RuleAnswer { netns_cookie: 5, function: 7, table: 1, chain: 2, rule }),
        socket: example.socket.map(|socket| Socket { cgroup: Some(9), ..socket }),
        captured: Some(Captured {
            length: packet.length,
            bytes: Bytes::from(packet.bytes),
            opened_by: Some((0, 0)),
            mark: 0,
            arrived_by: None,
            segments: Some(1),
        }),
        ..example
    }
}

fn end(rule: u64) -> Replay {
    let end = End::Nft(Replayed { table: 1, chain: 2, rule, path: vec!["output".to_owned()] });
    Replay::Walked { end: Some(end), doubt: None, netns_cookie: 5, since_ns: 1 }
}

/// The opinion of a copy in which the packet's way is this, and which has a rule with this text.
fn opinion(dropped: &Dropped, replay: Option<&Replay>, found: &Found) -> Poll<Opinion> {
    let replay = replay.cloned();
    let mut queries = Fake(Box::new(move |request| match request {
        Request::Resend(_) => replay.as_ref().map(|replay| encode::<Resend>(&Ok(replay.clone()))),
        Request::Rule(_) => {
            let decision = Decision { rule: Some(NamedRule::example("drop")), decider: None };
            Some(encode::<Rule>(&Ok(Some(decision))))
        }
        _ => None,
    }));
    let mut asking = Asking { queries: &mut queries, share: Share::Host, is_last: false };
    Replays::new(true, false).of(dropped, found, &mut Step::default(), &mut asking)
}

fn seen(text: Option<&str>) -> Found {
    let rule = NamedRule { text: text.map(str::to_owned), ..NamedRule::example("") };
    Found { decision: Some(Arc::new(Decision { rule: Some(rule), decider: None })), ..Found::default() }
}

#[test]
fn a_rule_that_was_seen_is_confirmed_or_not() {
    let of = |replay: Replay| opinion(&dropped(RULE), Some(&replay), &seen(Some("drop")));
    assert!(matches!(of(end(RULE)), Poll::Ready(Opinion::Same(path)) if path == ["output"]));
    let Poll::Ready(other) = of(end(RULE + 1)) else { panic!() };
    assert_eq!(other.words().as_deref(), Some("a copy of the rules drops it by another rule"));
    let passes = Replay::Walked { end: None, doubt: Some("limit".to_owned()), netns_cookie: 5, since_ns: 1 };
    let Poll::Ready(passes) = of(passes) else { panic!() };
    let words = "a copy of the rules lets it pass; they decide by more than the packet: limit";
    assert_eq!(passes.words().as_deref(), Some(words));
}

#[test]
fn a_rule_that_was_not_seen_is_named_by_the_copy_alone() {
    let unseen = dropped(UNKNOWN_RULE);
    let named = opinion(&unseen, Some(&end(RULE)), &seen(None));
    assert!(matches!(named, Poll::Ready(Opinion::Is(decision)) if decision.rule == Some(NamedRule::example("drop"))));
    let later = Replay::Walked { end: None, doubt: None, netns_cookie: 5, since_ns: u64::MAX };
    let later = opinion(&unseen, Some(&later), &seen(None));
    assert!(matches!(later, Poll::Ready(Opinion::Later)), "other rules may have been in force then");
    let Replay::Walked { end, .. } = end(RULE) else { panic!() };
    let doubted = Replay::Walked { end, doubt: Some("limit".to_owned()), netns_cookie: 5, since_ns: 1 };
    let doubted = opinion(&unseen, Some(&doubted), &seen(None));
    assert!(matches!(doubted, Poll::Ready(Opinion::Unsure(_))));
    let several = Dropped { packets: 2, ..unseen };
    let several = opinion(&several, Some(&self::end(RULE)), &seen(None));
    assert!(matches!(several, Poll::Ready(Opinion::None)), "each may have met another rule");
}

#[test]
fn a_copy_of_another_namespace_says_nothing() {
    let Replay::Walked { end, .. } = end(RULE) else { panic!() };
    let others = Replay::Walked { end, doubt: None, netns_cookie: 6, since_ns: 1 };
    assert!(matches!(opinion(&dropped(RULE), Some(&others), &seen(Some("drop"))), Poll::Ready(Opinion::None)));
}

#[test]
fn nothing_is_sent_for_what_cannot_be_sent_again() {
    let never = |dropped: &Dropped, found: &Found| {
        let mut queries = Fake(Box::new(|_| panic!("it was asked")));
        let mut asking = Asking { queries: &mut queries, share: Share::Host, is_last: false };
        let opinion = Replays::new(true, false).of(dropped, found, &mut Step::default(), &mut asking);
        matches!(opinion, Poll::Ready(Opinion::None))
    };
    let whole = dropped(RULE);
    assert!(never(&Dropped { captured: None, ..whole.clone() }, &seen(None)));
    assert!(never(&Dropped { coarse: true, ..whole.clone() }, &seen(None)));
    assert!(never(&whole, &Found::default()), "what is no rule may have dropped it");
    let reset = Dropped { tcp_flags: Some(4), ..whole };
    assert!(Background::of(&reset).is_some() && never(&reset, &seen(None)), "nobody waits for it");
}

#[test]
fn it_is_waited_for_until_its_line_is_told() {
    let unseen = dropped(UNKNOWN_RULE);
    assert!(opinion(&unseen, None, &seen(None)).is_pending());
    let mut queries = Fake(Box::new(|_| None));
    let mut asking = Asking { queries: &mut queries, share: Share::Host, is_last: true };
    let last = Replays::new(true, false).of(&unseen, &seen(None), &mut Step::default(), &mut asking);
    assert!(matches!(last, Poll::Ready(Opinion::Later)));
    assert!(matches!(opinion(&unseen, Some(&Replay::NotYet), &seen(None)), Poll::Ready(Opinion::Later)));
}

#[test]
fn one_account_has_its_share_and_no_more() {
    let mut replays = Replays::new(true, false);
    let stranger = Share::User(1000);
    let sent = (0..100).filter(|_| replays.may_send(stranger)).count();
    assert_eq!(sent, MAX_A_SECOND as usize);
    assert!(replays.may_send(Share::Host), "others have theirs");
}
