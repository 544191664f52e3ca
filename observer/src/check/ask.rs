//! Destinations as they are typed: `HOST:PORT`, `HOST:PORT/udp`, `[2001:db8::1]:443`, `203.0.113.0/24:443`. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Entry;

/// What is wrong with a word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{word}` {what}")]
pub struct AskError {
    word: String,
    what: &'static str,
}

/// True for what is meant to be a destination, and no profile's name.
pub fn is_destination(word: &str) -> bool {
    word.contains(':')
}

/// A destination.
pub fn destination(word: &str) -> Result<Entry, AskError> {
    let wrong = |what: &'static str| AskError { word: word.to_owned(), what };
    let (place, transport) = match word.rsplit_once('/') {
        Some((place, "tcp")) => (place, "tcp"),
        Some((place, "udp")) => (place, "udp"),
        // What follows may be the length of a network.
        Some((_, rest)) if !rest.contains(':') => return Err(wrong("has a protocol that is neither tcp nor udp")),
        _ => (word, "tcp"),
    };
    let (host, port) = place.rsplit_once(':').ok_or_else(|| wrong("has no port"))?;
    let port: u16 =
        port.parse().ok().filter(|port| *port != 0).ok_or_else(|| wrong("has no port between 1 and 65535"))?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_address = host.parse::<IpAddr>().is_ok() || host.parse::<IpNet>().is_ok();
    if !is_address && host.contains(':') {
        return Err(wrong("is no address of IPv6: write [2001:db8::1]:443"));
    }
    if !is_address && !is_name(host) {
        return Err(wrong("names no host, address or network"));
    }
    Ok(Entry {
        host: host.trim_end_matches('.').to_owned(),
        probe: None,
        transport,
        port,
        is_proxy: false,
        profile: None,
    })
}

/// Letters, digits, hyphens and underscores between dots.
pub fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let text = text.strip_suffix('.').unwrap_or(text);
    // An address that is none would be taken for a name.
    let is_number = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    text.len() <= 253 && text.split('.').all(is_label) && !is_number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_as_they_are_typed() {
        let of = |word: &str| destination(word).map(|entry| (entry.host, entry.port, entry.transport));
        let is = |host: &str, port, transport| Ok((host.to_owned(), port, transport));
        assert_eq!(of("example.com:443"), is("example.com", 443, "tcp"));
        assert_eq!(of("trace.agent.datadoghq.com.:443"), is("trace.agent.datadoghq.com", 443, "tcp"));
        assert_eq!(of("0.pool.ntp.org:123/udp"), is("0.pool.ntp.org", 123, "udp"));
        assert_eq!(of("[2001:db8::1]:443/tcp"), is("2001:db8::1", 443, "tcp"));
        assert_eq!(of("2001:db8::1:443"), is("2001:db8::1", 443, "tcp"), "the last part is the port");
        assert_eq!(of("203.0.113.0/24:443"), is("203.0.113.0/24", 443, "tcp"));
        assert_eq!(of("203.0.113.0/24:53/udp"), is("203.0.113.0/24", 53, "udp"));
        for wrong in [
            "example.com:0",
            "example.com:99999",
            "example.com:",
            ":443",
            "a b:443",
            "$(x):443",
            "host:443/sctp",
            "x:y:443",
            "-a.com:1",
            "203.0.113.300:443",
        ] {
            assert!(destination(wrong).is_err(), "{wrong}");
        }
    }
}
