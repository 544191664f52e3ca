//! Real connections (`--live`).

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use anyhow::Result;
use ipnet::IpNet;

use super::{sender::Sender, wanted::NOT_LOOKED_UP};
use crate::{
    check::{
        Known, Target,
        live::{self, ConnectionTest, Live, Step},
    },
    model::Connect,
    privilege::Helper,
};

/// What becomes of real connections to all addresses of all destinations, where these are known.
pub(super) fn tried(helper: &mut Helper, sender: &Sender, targets: &[Target]) -> Result<Vec<Vec<Live>>> {
    let mut found: Vec<Vec<Live>> = Vec::new();
    let mut trials = Vec::new();
    for (index, target) in targets.iter().enumerate() {
        let entry = &target.entry;
        if let Known::Any(why) = &target.known {
            let untried = if why == NOT_LOOKED_UP { Live::untried(why) } else { Live::failed(Step::Dns, why) };
            found.push(target.addresses.iter().map(|_| untried.clone()).collect());
            continue;
        }
        if entry.host.parse::<IpNet>().is_ok() {
            found.push(target.addresses.iter().map(|_| Live::untried("a network is not tried")).collect());
            continue;
        }
        let name = entry.probe.as_ref().unwrap_or(&entry.host);
        let mut of = Vec::new();
        for (at, address) in target.addresses.iter().enumerate() {
            let wanted = Connect {
                groups: sender.groups.clone(),
                netns: sender.netns,
                user: sender.user,
                cgroup: sender.cgroup.clone(),
                is_tcp: entry.transport == "tcp",
                to: SocketAddr::new(*address, entry.port),
            };
            let since = Instant::now();
            of.push(match helper.connect(&wanted)? {
                Ok(socket) => {
                    // What a proxy speaks first is not known.
                    let name = (name.parse::<IpAddr>().is_err() && !entry.is_proxy).then(|| name.clone());
                    let trial = ConnectionTest { socket, since, transport: entry.transport, port: entry.port, name };
                    trials.push(((index, at), trial));
                    Live::default()
                }
                Err((number, why)) => {
                    let words = number.map(|number| live::words(&io::Error::from_raw_os_error(number)));
                    words.map_or_else(|| Live::untried(&why), |words| Live::failed(Step::Connect, words))
                }
            });
        }
        found.push(of);
    }
    for ((index, at), live) in live::follow(trials)? {
        found[index][at] = live;
    }
    Ok(found)
}

/// No address of a destination was reached, though one could have been.
pub(super) fn has_failed(tried: &[Live]) -> bool {
    tried.iter().any(|live| live.failed.is_some())
        && !tried.iter().any(|live| live.failed.is_none() && live.has_connected())
}
