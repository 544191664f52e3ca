//! What stops a packet, by the rules of a namespace at one time.

use std::{
    fs::File,
    net::{IpAddr, SocketAddr},
    sync::{Arc, mpsc::channel},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    firewall::{files::Root, ruleset::Ruleset},
    model::{End, NamedRule, Origin, Packet, WantedRule},
    sandbox::copy::{
        Building, Caller, Connection, Copied, Handles, Held, Hide, Order, Sandbox, Stop, Talk, Talked, Transport,
    },
};

/// A copy of the rules, and their texts, are waited for so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// What becomes of a packet, or of the conversation that it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// What stops it.
    pub rule: Option<NamedRule>,
    /// What would stop it, were the neighbour by which it leaves not known: it stops what asks for that.
    pub by_known: Option<NamedRule>,
    /// What was not tried, or may become otherwise.
    pub but: Option<String>,
}

/// The rules of a namespace at one time: those of the host, or of a copy in which something was tried.
pub struct View {
    stage: Sandbox,
    ruleset: Option<Ruleset>,
    /// Below it are the front ends' files.
    root: Root,
    patience: Duration,
}

impl View {
    /// Of rules that were read, and the same as nftables lists them.
    pub fn new(
        copied: Copied,
        ruleset: Option<Ruleset>,
        root: Root,
        hide: &Hide,
        (logs, patience): (bool, u32),
    ) -> Result<Self> {
        let (send, receive) = channel();
        let _ = send.send(Ok(copied));
        let building = Building::begin(receive, (logs, true), Arc::clone(hide))?;
        let patience = PATIENCE * patience;
        let stage = building.until(Instant::now() + patience).ok().context("the copy was not there in time")??;
        Ok(Self { stage, ruleset, root, patience })
    }

    /// Nothing that is judged is waited for behind this.
    pub fn not_after(&self, until: Instant) {
        self.stage.not_after(until);
    }

    /// Nothing more is tried in it: what remains are the rules.
    pub fn into_ruleset(self) -> Option<Ruleset> {
        self.ruleset
    }

    /// Rules of a copy, by their handles, in the words of those that they were made from.
    pub(super) fn read_as(&mut self, original: &mut Ruleset, handles: &Handles) {
        if let Some(ruleset) = &mut self.ruleset {
            ruleset.read_as(original, handles, Instant::now() + self.patience);
        }
    }

    /// What differs from an earlier one, in rules that came and rules that went.
    pub fn difference(&mut self, earlier: &mut Self) -> (Vec<String>, Vec<String>) {
        let (Some(now), Some(before)) = (&mut self.ruleset, &mut earlier.ruleset) else { return Default::default() };
        // Front ends' files are the copy's own business.
        let difference = now.difference(before, Instant::now() + self.patience, &mut Vec::new);
        let shown = |rules: Vec<String>, all: usize| -> Vec<String> {
            let more = all.saturating_sub(rules.len());
            let more = (more > 0).then(|| format!("and {more} more rules"));
            rules.into_iter().chain(more).collect()
        };
        let mut added = shown(difference.added, difference.rules_added);
        added.extend(difference.policies.into_iter().map(|policy| format!("policy of {policy}")));
        (added, shown(difference.removed, difference.rules_removed))
    }

    /// What stops a packet, or the conversation that it begins; an error where that cannot be reported. The sender is in that cgroup,
    /// or will be in one that is not there yet.
    pub fn judge(&mut self, packet: &Packet, sender: (Option<&File>, bool)) -> Result<Judged> {
        let (judged, doubt) = self.at_worst(packet, sender)?;
        match doubt {
            Some(doubt) => match judged.rule {
                Some(rule) => bail!("it depends on {doubt}; one way, {}", rule.sentence()),
                None => bail!("it depends on {doubt}"),
            },
            None => Ok(judged),
        }
    }

    /// The same where they may decide in several ways, and one of them that stops it; an error where none that was seen does.
    pub(super) fn may_stop(&mut self, packet: &Packet, sender: (Option<&File>, bool)) -> Result<Judged> {
        match self.at_worst(packet, sender)? {
            (judged, Some(doubt)) if judged.rule.is_none() => {
                bail!("it depends on {doubt}")
            }
            (judged, _) => Ok(judged),
        }
    }

    fn at_worst(
        &mut self,
        packet: &Packet,
        (cgroup, is_later): (Option<&File>, bool),
    ) -> Result<(Judged, Option<String>)> {
        let cgroup = match cgroup.filter(|_| self.stage.asks_for_cgroups()) {
            Some(cgroup) => Some(cgroup.try_clone()?),
            None => None,
        };
        let is_broadcast = packet.to().is_some_and(|(_, to, _)| self.stage.around().is_broadcast(to));
        let only_first = |why: &str| Some(format!("only its first packet was tried: {why}"));
        let only_packets = self.stage.only_packets();
        let mut but = only_packets.and_then(only_first);
        let mut by_known = None;
        let (stop, doubt) = match talk(packet, cgroup.as_ref(), (|index| self.entrance(index), is_broadcast))? {
            Some(talk) if only_packets.is_none() => {
                let around = self.stage.around();
                let untried = around.untried(packet.interface.as_deref());
                let Talked { held, doubt, usual, unheard } = self.stage.hold(talk, (packet.is_made, is_later))?;
                let usual = usual.map(|words| format!("for usual packets; it depends on {words}"));
                let notes: Vec<String> = unheard.into_iter().chain(untried).chain(usual).collect();
                but = (!notes.is_empty()).then(|| notes.join("; "));
                match held {
                    Held::Completed => (None, doubt),
                    Held::ByKnown(stop) => {
                        by_known = Some(*stop);
                        (None, doubt)
                    }
                    Held::Stopped(stop) => (Some(*stop), doubt),
                }
            }
            of => {
                if of.is_none() {
                    but = only_first("it is not of a kind by which conversations are held here");
                }
                if let Some((_, to, _)) = packet.to()
                    && let Some(why) = self.stage.around().why_untested(to, None, || true)
                {
                    bail!("{why}");
                }
                let order = Order { packet: packet.clone(), connection: Connection::New, cgroup };
                let (end, doubt) = self.stage.replay(order)?;
                (end.map(|end| Stop { end, packet: None, leads_to: None, translated: None }), doubt)
            }
        };
        let mut named = |stop: Option<Stop>| stop.map(|stop| self.named(stop)).transpose();
        Ok((Judged { rule: named(stop)?, by_known: named(by_known)?, but }, doubt))
    }

    /// What becomes of a conversation that nobody has asked for.
    pub(super) fn hold(&self, talk: Talk, is_later: bool) -> Result<Held> {
        let Talked { held, doubt, .. } = self.stage.hold(talk, (true, is_later))?;
        ensure!(doubt.is_none(), "it depends on more than the packet");
        Ok(held)
    }

    /// Interfaces with an address of that family: their numbers, an own address, and one that a neighbour may have.
    pub(super) fn links(&self, v6: bool) -> Vec<(u32, IpAddr, IpAddr)> {
        self.stage.around().neighbours(v6)
    }

    /// Rules ask for the sender's cgroup.
    pub(super) fn asks_for_cgroups(&self) -> bool {
        self.stage.asks_for_cgroups()
    }

    /// Name of an interface.
    pub(super) fn link(&self, index: u32) -> Option<String> {
        self.stage.around().name(index).map(str::to_owned)
    }

    /// Where what came in by an interface comes in.
    pub(super) fn entrance(&self, index: u32) -> Option<u32> {
        self.stage.around().entrance(index)
    }

    /// It forwards packets of that family.
    pub(super) fn forwards(&self, v6: bool) -> bool {
        self.stage.around().forwards(v6)
    }

    /// The rule that stopped it, by name.
    fn named(&mut self, Stop { end, packet, leads_to, translated }: Stop) -> Result<NamedRule> {
        let mut roots = || vec![self.root.again()];
        let rule = match end {
            End::Legacy(mut rule) => {
                rule.statement = self.stage.statement(&rule, &mut roots);
                *rule
            }
            End::Nft(end) => {
                let wanted = WantedRule {
                    netns: 0,
                    netns_cookie: 0,
                    function: 0,
                    table: end.table,
                    chain: end.chain,
                    rule: end.rule,
                    hook: None,
                    v6: None,
                };
                let ruleset = self.ruleset.as_mut().context("the copy has no rules")?;
                let rule = ruleset.named(&wanted, Instant::now() + self.patience, Some(&mut roots));
                // Where several ways lead to it, the packet's own is known.
                let rule = rule.context("a rule stops it that is not there")?;
                NamedRule { path: end.path, ..rule }
            }
        };
        let translates = rule.translates.filter(|_| leads_to.is_none());
        Ok(NamedRule { packet, leads_to, translated, translates, ..rule })
    }
}

/// The conversation that a packet begins; nothing of one that begins none.
fn talk(
    packet: &Packet,
    cgroup: Option<&File>,
    (entrance, is_broadcast): (impl Fn(u32) -> Option<u32>, bool),
) -> Result<Option<Talk>> {
    /// Ports from here on are given to who asks for none.
    const GIVEN: u16 = 32_768;
    /// No interface takes more at once.
    const MAX_PAYLOAD: usize = 1232;
    let (Some((transport, address, port)), Some(source)) = (packet.to(), packet.from()) else { return Ok(None) };
    let transport = match transport {
        "tcp" if packet.begins() => Transport::Tcp,
        // From a server's port to one that was given: it is an answer.
        "udp" if source.1 >= GIVEN || port < GIVEN => Transport::Udp,
        _ => return Ok(None),
    };
    let is_many = match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast(),
    };
    if is_many || is_broadcast {
        return Ok(None);
    }
    let source = SocketAddr::new(source.0, source.1);
    let from = match &packet.origin {
        Origin::Socket { uid, gid, groups, mark, .. } => Caller::Here {
            uid: *uid,
            gid: *gid,
            groups: groups.clone(),
            mark: *mark,
            cgroup: cgroup.map(File::try_clone).transpose()?,
            // What is made up has the address that its route gives.
            source: Some(source),
        },
        Origin::Interface { index } => {
            let index = entrance(*index).context("the interface by which it came is not in the copy")?;
            Caller::Behind { index, source }
        }
    };
    let mut payload = packet.payload().unwrap_or_default();
    // What was not captured is as long.
    let missing = (packet.length as usize).saturating_sub(packet.bytes.len());
    payload.resize((payload.len() + missing).min(MAX_PAYLOAD), 0);
    Ok(Some(Talk { transport, to: SocketAddr::new(address, port), from, payload, own_port: None, is_probe: false }))
}
