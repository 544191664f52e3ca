//! Ports by their names.

use std::fs;

/// Names that /etc/services may lack, or that hosts without it need.
const COMMON: [(&str, u16); 14] = [
    ("domain", 53),
    ("dns", 53),
    ("ftp", 21),
    ("http", 80),
    ("https", 443),
    ("imaps", 993),
    ("ldap", 389),
    ("ldaps", 636),
    ("mysql", 3306),
    ("ntp", 123),
    ("postgresql", 5432),
    ("smtp", 25),
    ("ssh", 22),
    ("submission", 587),
];

/// A port as it is typed: its number, or the name of a service.
pub fn port(text: &str) -> Result<u16, String> {
    let wrong = || format!("`{text}` is not a port; write a number from 1 to 65535, or a name from /etc/services");
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().filter(|port| *port != 0).ok_or_else(wrong);
    }
    named(&fs::read_to_string("/etc/services").unwrap_or_default(), text).ok_or_else(wrong)
}

/// The port of a name in the text of /etc/services, else of one that everybody knows.
fn named(services: &str, name: &str) -> Option<u16> {
    let of_line = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (own, place) = (words.next()?, words.next()?);
        let is_it = own == name || words.any(|alias| alias == name);
        is_it.then(|| place.split('/').next()?.parse().ok()).flatten()
    };
    let common = || COMMON.iter().find(|(known, _)| *known == name).map(|(_, port)| *port);
    services.lines().find_map(of_line).or_else(common)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_a_number_or_a_name() {
        assert_eq!((port("443"), port("https")), (Ok(443), Ok(443)));
        assert!(port("0").is_err() && port("65536").is_err() && port("").is_err());
        assert_eq!(
            port("htps").unwrap_err(),
            "`htps` is not a port; write a number from 1 to 65535, or a name from /etc/services"
        );
        let services = "# comment\nhttp 8080/tcp www # web\nbroken\n";
        assert_eq!((named(services, "www"), named(services, "http")), (Some(8080), Some(8080)));
        assert_eq!((named(services, "ssh"), named(services, "comment")), (Some(22), None));
    }
}
