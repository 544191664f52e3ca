//! Ports on which somebody listens in a namespace: where a rule sends a connection to this host itself, somebody must be there.

use std::{
    collections::HashSet,
    fs::File,
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// A protocol by which conversations are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A socket that waits for whoever comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listener {
    transport: Transport,
    at: SocketAddr,
    /// Whose it is.
    pub(super) uid: u32,
}

/// Those of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listeners {
    all: Vec<Listener>,
    /// There are more.
    is_cut: bool,
}

impl Listeners {
    /// Who hears what goes to that address and port; nobody does where there is none. An error where that is not known.
    pub(super) fn who(&self, transport: Transport, to: SocketAddr) -> Result<Option<&Listener>> {
        let found = self.all.iter().find(|listener| listener.hears(transport, to));
        ensure!(
            found.is_some() || !self.is_cut,
            "so many sockets listen here that it is not known who listens on {to}"
        );
        Ok(found)
    }
}

/// State of a socket that listens, and of one for datagrams that is connected to nobody.
const LISTENS: &str = "0A";
const UNCONNECTED: &str = "07";
/// More sockets that listen at one address alone are not remembered.
const MAX: usize = 10_000;
/// The same of those that listen at every address. One for each port is enough, unless several users share it.
const MAX_AT_ANY: usize = 70_000;
/// Bytes of a list that are read. Established connections are in it, too.
const MAX_BYTES: u64 = 256 << 20;

impl Listener {
    /// What goes to that address and port comes to it.
    pub(super) fn hears(&self, transport: Transport, to: SocketAddr) -> bool {
        let is_any = |own: IpAddr| match own {
            IpAddr::V4(own) => own.is_unspecified() && to.is_ipv4(),
            // It hears both families, unless somebody has switched that off, which is not to be seen here.
            IpAddr::V6(own) => own.is_unspecified(),
        };
        self.transport == transport
            && self.at.port() == to.port()
            && (is_any(self.at.ip()) || self.at.ip().to_canonical() == to.ip().to_canonical())
    }
}

/// Those of the calling thread's namespace.
pub(super) fn here() -> Listeners {
    let files = [
        ("tcp", Transport::Tcp, LISTENS),
        ("tcp6", Transport::Tcp, LISTENS),
        ("udp", Transport::Udp, UNCONNECTED),
        ("udp6", Transport::Udp, UNCONNECTED),
    ];
    let mut listeners = Listeners::default();
    for (file, transport, state) in files {
        // Anybody may open as many sockets at one port as they like: the same again is not counted.
        let (mut known, mut at_one, mut at_any, mut bytes) = (HashSet::new(), 0, 0, 0);
        let lines = File::open(format!("/proc/thread-self/net/{file}")).map(BufReader::new).map(BufRead::lines);
        for line in lines.into_iter().flatten().skip(1) {
            let Ok(line) = line else {
                listeners.is_cut = true;
                break;
            };
            bytes += line.len() as u64;
            if bytes > MAX_BYTES {
                break;
            }
            let Some((at, uid)) = socket(&line, state).filter(|socket| !known.contains(socket)) else { continue };
            let (count, most) = if at.ip().is_unspecified() { (&mut at_any, MAX_AT_ANY) } else { (&mut at_one, MAX) };
            *count += 1;
            if *count <= most {
                known.insert((at, uid));
                listeners.all.push(Listener { transport, at, uid });
            }
        }
        listeners.is_cut |= at_one > MAX || at_any > MAX_AT_ANY || bytes > MAX_BYTES;
    }
    listeners
}

/// `  0: 0100007F:1F90 00000000:0000 0A …`
fn socket(line: &str, state: &str) -> Option<(SocketAddr, u32)> {
    let mut words = line.split_whitespace().skip(1);
    let (own, _, is) = (words.next()?, words.next()?, words.next()?);
    let (address, port) = own.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        _ => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words).ok()?))
        }
    };
    let at = SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?);
    // Behind its queues, its timer and how often it was sent again.
    let uid = words.nth(3)?.parse().ok()?;
    (is == state).then_some((at, uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn sockets_are_read_as_the_kernel_lists_them() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1";
        let (at, uid) = socket(line, LISTENS).unwrap();
        assert_eq!((at, uid), ("127.0.0.1:8080".parse().unwrap(), 0));
        assert_eq!(socket(&line.replace(" 0A ", " 01 "), LISTENS), None);
        let v6 = "   0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 \
                  00:00000000 00000000 65534";
        assert_eq!(socket(v6, LISTENS), Some(("[::1]:22".parse().unwrap(), 65534)));
    }

    #[test]
    fn who_hears_what() {
        let listener = |at: &str| Listener { transport: Transport::Tcp, at: at.parse().unwrap(), uid: 0 };
        let to = |to: &str| to.parse().unwrap();
        assert!(listener("0.0.0.0:80").hears(Transport::Tcp, to("10.0.0.1:80")));
        assert!(listener("[::]:80").hears(Transport::Tcp, to("10.0.0.1:80")));
        assert!(!listener("0.0.0.0:80").hears(Transport::Tcp, to("[2001:db8::1]:80")));
        assert!(!listener("127.0.0.1:80").hears(Transport::Tcp, to("10.0.0.1:80")));
        assert!(!listener("0.0.0.0:80").hears(Transport::Udp, to("10.0.0.1:80")));
    }
}
