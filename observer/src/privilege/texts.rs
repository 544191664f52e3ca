//! What surrounds a block, as texts for whoever keeps them: the routes of a network namespace, and what a systemd unit says of networks.
//! No program is run for them.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use anyhow::{Context, Result};
use netlink_bindings::{
    rt_route::{self, RouteAttrs, Rtmsg},
    rt_rule::{self, FibRuleAttrs, FibRuleHdr},
};
use netlink_socket2::NetlinkSocket;
use nix::net::if_::if_indextoname;

/// Bytes of a text. What is longer is cut, and marked.
const MAX_BYTES: usize = 64 * 1024;
const CUT: &str = "…\n";
/// Folders of units, the most important first.
const FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/transient",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
];
/// Properties of a unit that decide which way it may send, and as whom. Others are not read: they may have secrets.
const PROPERTIES: [&str; 24] = [
    "AppArmorProfile",
    "BPFProgram",
    "DynamicUser",
    "Group",
    "IPAddressAllow",
    "IPAddressDeny",
    "IPEgressFilterPath",
    "IPIngressFilterPath",
    "JoinsNamespaceOf",
    "NFTSet",
    "NetworkNamespacePath",
    "PrivateNetwork",
    "PrivateUsers",
    "RestrictAddressFamilies",
    "RestrictNamespaces",
    "RestrictNetworkInterfaces",
    "SELinuxContext",
    "Slice",
    "SmackProcessLabel",
    "SocketBindAllow",
    "SocketBindDeny",
    "SystemCallFilter",
    "User",
    "VRF",
];

/// Rules of routing and routes of the calling thread's namespace, in the words of `ip rule` and `ip route show table all`.
pub(super) fn routes() -> Result<String> {
    let mut text = String::new();
    for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
        let mut socket = NetlinkSocket::new();
        let header = FibRuleHdr { family, ..FibRuleHdr::new() };
        let request = rt_rule::Request::new().op_getrule_dump(&header);
        let mut replies = socket.request(&request).context("cannot ask for rules of routing")?;
        while let Some(reply) = replies.recv() {
            let Ok((header, attributes)) = reply else { break };
            let _ = writeln!(text, "{}", rule(&header, attributes.flatten()));
        }
        let mut socket = NetlinkSocket::new();
        let header = Rtmsg { rtm_family: family, ..Rtmsg::new() };
        let request = rt_route::Request::new().op_getroute_dump(&header);
        let mut replies = socket.request(&request).context("cannot ask for routes")?;
        while let Some(reply) = replies.recv() {
            let Ok((header, attributes)) = reply else { break };
            // What the kernel remembers of single destinations is no route.
            const CLONED: u32 = 0x200;
            if header.rtm_flags & CLONED == 0 {
                let _ = writeln!(text, "{}", route(&header, attributes.flatten()));
            }
            if text.len() > MAX_BYTES {
                break;
            }
        }
    }
    Ok(cut(text))
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_BYTES {
        text.truncate(text.floor_char_boundary(MAX_BYTES));
        text.push_str(CUT);
    }
    text
}

/// As `ip route` writes it.
fn route<'a>(header: &Rtmsg, attributes: impl Iterator<Item = RouteAttrs<'a>>) -> String {
    let (mut to, mut ways, mut table) = (None, String::new(), u32::from(header.rtm_table));
    for attribute in attributes {
        let _ = match attribute {
            RouteAttrs::Dst(address) => {
                to = Some(format!("{address}/{}", header.rtm_dst_len));
                Ok(())
            }
            RouteAttrs::Table(number) => {
                table = number;
                Ok(())
            }
            RouteAttrs::Src(address) => write!(ways, " from {address}/{}", header.rtm_src_len),
            RouteAttrs::Gateway(address) | RouteAttrs::Via(address) => write!(ways, " via {address}"),
            RouteAttrs::Oif(index) => write!(ways, " dev {}", interface(index)),
            RouteAttrs::Prefsrc(address) => write!(ways, " src {address}"),
            RouteAttrs::Priority(metric) => write!(ways, " metric {metric}"),
            RouteAttrs::NhId(number) => write!(ways, " nhid {number}"),
            RouteAttrs::Multipath(_) => write!(ways, " nexthops …"),
            _ => Ok(()),
        };
    }
    let kind = match header.rtm_type {
        2 => "local ",
        3 => "broadcast ",
        4 => "anycast ",
        5 => "multicast ",
        6 => "blackhole ",
        7 => "unreachable ",
        8 => "prohibit ",
        9 => "throw ",
        _ => "",
    };
    format!("{kind}{}{ways} table {}", to.as_deref().unwrap_or("default"), named(table))
}

/// As `ip rule` writes it.
fn rule<'a>(header: &FibRuleHdr, attributes: impl Iterator<Item = FibRuleAttrs<'a>>) -> String {
    let (mut priority, mut table) = (0, u32::from(header.table));
    let (mut from, mut mask, mut mark) = ("from all".to_owned(), u32::MAX, None);
    let mut more = String::new();
    for attribute in attributes {
        let _ = match attribute {
            FibRuleAttrs::Priority(number) => {
                priority = number;
                Ok(())
            }
            FibRuleAttrs::Table(number) => {
                table = number;
                Ok(())
            }
            FibRuleAttrs::Src(address) => {
                from = format!("from {address}/{}", header.src_len);
                Ok(())
            }
            FibRuleAttrs::Fwmark(number) => {
                mark = Some(number);
                Ok(())
            }
            FibRuleAttrs::Fwmask(number) => {
                mask = number;
                Ok(())
            }
            FibRuleAttrs::Dst(address) => write!(more, " to {address}/{}", header.dst_len),
            FibRuleAttrs::Iifname(name) => write!(more, " iif {}", name.to_string_lossy()),
            FibRuleAttrs::Oifname(name) => write!(more, " oif {}", name.to_string_lossy()),
            FibRuleAttrs::UidRange(range) => write!(more, " uidrange {}-{}", range.start, range.end),
            FibRuleAttrs::IpProto(number) => write!(more, " ipproto {number}"),
            FibRuleAttrs::SportRange(range) => write!(more, " sport {}-{}", range.start, range.end),
            FibRuleAttrs::DportRange(range) => write!(more, " dport {}-{}", range.start, range.end),
            FibRuleAttrs::L3mdev(1) => write!(more, " l3mdev"),
            FibRuleAttrs::SuppressPrefixlen(length) if length != u32::MAX => {
                write!(more, " suppress_prefixlength {length}")
            }
            FibRuleAttrs::Goto(number) => write!(more, " goto {number}"),
            _ => Ok(()),
        };
    }
    if let Some(mark) = mark {
        let _ = write!(more, " fwmark {mark:#x}/{mask:#x}");
    }
    let what = match header.action {
        6 => "blackhole".to_owned(),
        7 => "unreachable".to_owned(),
        8 => "prohibit".to_owned(),
        _ => format!("lookup {}", named(table)),
    };
    let family = if i32::from(header.family) == libc::AF_INET6 { "-6 " } else { "" };
    format!("{family}rule {priority}: {from}{more} {what}")
}

fn named(table: u32) -> String {
    match table {
        253 => "default".to_owned(),
        254 => "main".to_owned(),
        255 => "local".to_owned(),
        other => other.to_string(),
    }
}

fn interface(index: u32) -> String {
    if_indextoname(index).ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| index.to_string())
}

/// What a unit of the system says of networks, users and confinement: `Property=value` lines of its files, each with its file.
/// `None` where it has no file.
pub(super) fn unit(name: &str) -> Option<String> {
    unit_in(&FOLDERS.map(Path::new), name)
}

fn unit_in(folders: &[&Path], name: &str) -> Option<String> {
    // A unit's name is a file's name but for this, which no name has.
    if name.contains('/') || name.starts_with('.') {
        return None;
    }
    // `NAME@INSTANCE.service` may have a file, and `NAME@.service`.
    let template = name.split_once('@').and_then(|(stem, rest)| Some(format!("{stem}@{}", &rest[rest.rfind('.')?..])));
    let names: Vec<&str> = [Some(name), template.as_deref()].into_iter().flatten().collect();
    let main =
        names.iter().find_map(|name| folders.iter().map(|folder| folder.join(name)).find(|path| path.exists()))?;
    // A drop-in of a more important folder hides one of the same name.
    let mut drop_ins = BTreeMap::new();
    for folder in folders.iter().rev() {
        for name in names.iter().rev() {
            let entries = fs::read_dir(folder.join(format!("{name}.d"))).into_iter().flatten().flatten();
            for path in entries.map(|entry| entry.path()) {
                if path.extension().is_some_and(|extension| extension == "conf") {
                    drop_ins.insert(path.file_name().map(ToOwned::to_owned), path);
                }
            }
        }
    }
    let mut text = String::new();
    for path in [main].iter().chain(drop_ins.values()) {
        let file = fs::read_to_string(path).unwrap_or_default();
        let _ = writeln!(text, "# {}", path.display());
        for line in file.lines().map(str::trim) {
            if line.split_once('=').is_some_and(|(property, _)| PROPERTIES.contains(&property.trim())) {
                let _ = writeln!(text, "{line}");
            }
        }
    }
    Some(cut(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_a_route() {
        let text = routes().unwrap();
        assert!(text.contains("rule 0: from all lookup local"), "{text}");
    }

    #[test]
    fn of_a_unit_only_what_it_says_of_networks() {
        let folder = tempfile::tempdir().unwrap();
        let (etc, usr) = (folder.path().join("etc"), folder.path().join("usr"));
        for path in [&usr, &etc.join("a@1.service.d"), &usr.join("a@.service.d")] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(usr.join("a@.service"), "[Service]\nUser=a\nEnvironment=TOKEN=secret\n IPAddressDeny = any\n")
            .unwrap();
        fs::write(usr.join("a@.service.d/x.conf"), "[Service]\nIPAddressAllow=10.0.0.0/8\n").unwrap();
        fs::write(etc.join("a@1.service.d/x.conf"), "[Service]\nIPAddressAllow=localhost\nExecStart=/bin/x key\n")
            .unwrap();
        let text = unit_in(&[&etc, &usr], "a@1.service").unwrap();
        assert!(
            text.contains("User=a\nIPAddressDeny = any\n") && text.contains("IPAddressAllow=localhost\n"),
            "{text}"
        );
        assert!(!text.contains("secret") && !text.contains("ExecStart") && !text.contains("10.0.0.0/8"), "{text}");
        assert_eq!(unit_in(&[&etc, &usr], "b.service"), None);
        assert_eq!(unit_in(&[&etc, &usr], "../a@.service"), None);
    }
}
