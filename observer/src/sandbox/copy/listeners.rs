//! Ports on which somebody listens in a namespace: where a rule sends a connection to this host itself, somebody must be there.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

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
}

/// State of a socket that listens, and of one for datagrams that is connected to nobody.
const LISTENS: &str = "0A";
const UNCONNECTED: &str = "07";
/// More of them are not remembered.
const MAX: usize = 10_000;

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
pub(super) fn here() -> Vec<Listener> {
    let files = [
        ("tcp", Transport::Tcp, LISTENS),
        ("tcp6", Transport::Tcp, LISTENS),
        ("udp", Transport::Udp, UNCONNECTED),
        ("udp6", Transport::Udp, UNCONNECTED),
    ];
    let of = |(file, transport, state): (&str, Transport, &str)| {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        let sockets = text.lines().skip(1).filter_map(|line| socket(line, state));
        sockets.map(|at| Listener { transport, at }).take(MAX).collect::<Vec<_>>()
    };
    files.into_iter().flat_map(of).collect()
}

/// `  0: 0100007F:1F90 00000000:0000 0A …`
fn socket(line: &str, state: &str) -> Option<SocketAddr> {
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
    (is == state).then(|| Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn sockets_are_read_as_the_kernel_lists_them() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1";
        let at = socket(line, LISTENS).unwrap();
        assert_eq!(at, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(socket(&line.replace(" 0A ", " 01 "), LISTENS), None);
        let v6 = "   0: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A";
        assert_eq!(socket(v6, LISTENS), Some("[::1]:22".parse().unwrap()));
    }

    #[test]
    fn who_hears_what() {
        let listener = |at: &str| Listener { transport: Transport::Tcp, at: at.parse().unwrap() };
        let to = |to: &str| to.parse().unwrap();
        assert!(listener("0.0.0.0:80").hears(Transport::Tcp, to("10.0.0.1:80")));
        assert!(listener("[::]:80").hears(Transport::Tcp, to("10.0.0.1:80")));
        assert!(!listener("0.0.0.0:80").hears(Transport::Tcp, to("[2001:db8::1]:80")));
        assert!(!listener("127.0.0.1:80").hears(Transport::Tcp, to("10.0.0.1:80")));
        assert!(!listener("0.0.0.0:80").hears(Transport::Udp, to("10.0.0.1:80")));
    }
}
