//! Whether this kernel can replay: a packet that a known rule drops must end at that rule in a copy.

use std::{
    sync::{Arc, mpsc::channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};

use super::{Building, Connection, Order, logs_everywhere, packet::datagram, surroundings, take};
use crate::{
    firewall::{
        build::{self, RuleSpec, TableSpec, Then},
        nft,
    },
    kernel::loopback::raise_loopback,
    model::End,
};

/// Longer than it takes.
const PATIENCE: Duration = Duration::from_secs(10);
const NAME: &str = "observer_proof";
/// The port of a rule that drops, and one that no rule is about: the policy drops.
const BY_RULE: u16 = 2;
const BY_POLICY: u16 = 3;

/// Makes a ruleset in a namespace of its own, and copies that; returns how long the copy took.
pub fn prove() -> Result<Duration> {
    surroundings::kind()?;
    let (send, copied) = channel();
    let (tell, told) = channel();
    // Both namespaces end with their threads.
    thread::spawn(move || {
        crate::sys::name_copy_thread();
        let made = make();
        let began = Instant::now();
        let copy = made.and_then(|handle| {
            let copied = take(usize::MAX)?;
            let _ = tell.send((handle, began));
            Ok(copied)
        });
        let _ = send.send(copy);
    });
    let building = Building::begin(copied, (logs_everywhere(), false), Arc::new(|_| Ok(Box::new(()))))?;
    let made = building.until(Instant::now() + PATIENCE).ok().context("the copy was not there in time")?;
    let took = Instant::now();
    let stage = made?;
    let (handle, began) = told.recv_timeout(PATIENCE).context("the rules were not there in time")?;
    for (port, rule) in [(BY_RULE, handle), (BY_POLICY, 0)] {
        let end = stage.replay(Order { packet: datagram(port), connection: Connection::Unknown, cgroup: None })?;
        match end.0.context("a packet that is dropped passed in the copy")? {
            End::Nft(end) if end.rule == rule => {}
            _ => bail!("a packet did not end at rule {rule} in the copy"),
        }
    }
    Ok(took.duration_since(began))
}

/// In a namespace of this thread's own; the handle of the rule that drops.
fn make() -> Result<u64> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    raise_loopback().context("cannot raise the namespace's loopback")?;
    let rule = |chain, port, then| RuleSpec { chain, port, then };
    let rules = [
        rule("output", 1, Then::Accept),
        rule("output", BY_RULE, Then::Jump("inner")),
        rule("inner", BY_RULE, Then::Drop),
    ];
    build::table(&TableSpec { name: NAME, priority: 0, drops: true, chains: &["inner"], rules: &rules })?;
    let rules = nft::rules()?;
    Ok(rules.iter().find(|rule| rule.chain == "inner").context("a rule is not listed")?.handle)
}
