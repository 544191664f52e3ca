//! Who would send: by `--as`, `--as-unit` and `--netns`.

use anyhow::Result;

use super::{super::filters, Args, usage};
use crate::{
    check::{proxy::Proxies, unit::Unit},
    launch::User,
    model::Later,
};

/// Who would send.
#[derive(Default)]
pub(super) struct Sender {
    /// User and group.
    pub(super) user: (u32, u32),
    /// The user's other groups.
    pub(super) groups: Vec<u32>,
    /// The user's name, where that is not root.
    pub(super) name: Option<String>,
    pub(super) unit: Option<String>,
    pub(super) cgroup: Option<String>,
    pub(super) later: Option<Later>,
    pub(super) netns: Option<u32>,
    /// Those of the unit.
    pub(super) proxies: Option<Proxies>,
}

/// By `--as`, `--as-unit` and `--netns`; what is said of itself goes before what a unit says.
pub(super) fn sender(args: &Args) -> Result<Sender> {
    let unit = match args.as_unit.as_deref() {
        Some(path) if path.starts_with('/') => {
            return Ok(Sender { cgroup: Some(format!("/{}", path.trim_matches('/'))), ..plain(args, None)? });
        }
        Some(name) => {
            Unit::find(name).map_err(|error| usage(&format!("{error:#}"), "name a unit as systemctl does"))?
        }
        None => return plain(args, None),
    };
    if args.live && unit.later.is_some() {
        let sentence = format!("{} does not run: nobody can connect as it", unit.name);
        return Err(usage(&sentence, "start it, or ask without --live"));
    }
    let mut sender = plain(args, unit.user.as_deref())?;
    if let (Some(group), None) = (&unit.group, &args.user) {
        sender.user.1 = filters::group(group)?;
    }
    if args.netns.is_none() && (unit.has_own_network || unit.namespace.is_some()) {
        let of_its_process = unit.netns().map_err(|error| usage(&format!("{error:#}"), "ask again"))?;
        sender.netns = match (of_its_process, &unit.namespace) {
            (Some(number), _) => Some(number),
            (None, Some(path)) => filters::namespace(path)?,
            (None, None) => {
                let sentence =
                    format!("{} has a network namespace of its own, which is there only while it runs", unit.name);
                return Err(usage(&sentence, "start it, and ask again"));
            }
        };
    }
    let proxies = Proxies::of_variables(&unit.environment, &unit.name);
    Ok(Sender { unit: Some(unit.name), cgroup: unit.cgroup, later: unit.later, proxies, ..sender })
}

fn plain(args: &Args, user: Option<&str>) -> Result<Sender> {
    let name = args.user.as_deref().or(user);
    let (user, groups) = match name {
        Some(text) => User::find(text)?
            .map(|user| ((user.uid(), user.gid()), user.groups()))
            .ok_or_else(|| usage(&format!("there is no user `{text}`"), "`getent passwd` lists them"))?,
        None => ((0, 0), Vec::new()),
    };
    let netns = args.netns.as_deref().map(filters::namespace).transpose()?.flatten();
    Ok(Sender { user, groups, name: name.map(str::to_owned), netns, ..Sender::default() })
}
