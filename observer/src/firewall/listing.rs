//! What `nft` writes for the rules of a namespace: the texts that people know, by handle.

use std::{
    collections::HashMap,
    fmt::Write,
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::{
    netfilter::family,
    nft::{self, Table},
};
use crate::{
    confinement::{child::Confined, programs},
    patience,
};

/// What a program that lists rules may use of a processor.
const LIMIT: Duration = Duration::from_secs(10);
/// How hard a text is compressed, of 10: rulesets repeat themselves, and little effort is enough.
const LEVEL: u8 = 3;
/// A rule's text is cut after so many characters, and marked.
const MAX_TEXT: usize = 1024;

/// The texts of a ruleset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// By the handles of table and rule.
    texts: HashMap<(u64, u64), String>,
    /// Number of the ruleset once it was listed, when it had not changed meanwhile.
    pub generation: Option<u32>,
    /// SHA-256 of everything that `nft` wrote but handles, in hexadecimal digits.
    pub sha256: String,
    /// What the digest is of, compressed (zlib), and its bytes before.
    packed: Vec<u8>,
    bytes: u64,
    /// Rules as iptables writes them, by family, table and chain.
    saved: Saved,
}

impl Listing {
    /// A rule as iptables writes it, when it wrote that chain: of so many rules the one at a position, from 1 on.
    pub fn iptables(&self, family: u8, table: &str, chain: &str, position: usize, rules: usize) -> Option<&str> {
        let lines = self.saved.get(&(family, table.to_owned(), chain.to_owned()))?;
        // Rules that iptables does not understand are left out by it.
        (lines.len() == rules).then(|| lines.get(position.checked_sub(1)?)).flatten().map(String::as_str)
    }

    /// Rules as iptables writes them: family, table, chain, and each rule.
    pub fn saved(&self) -> impl Iterator<Item = (u8, &str, &str, &[String])> {
        self.saved
            .iter()
            .map(|((family, table, chain), rules)| (*family, table.as_str(), chain.as_str(), rules.as_slice()))
    }

    /// A rule's text.
    pub fn text(&self, table: u64, rule: u64) -> Option<&str> {
        self.texts.get(&(table, rule)).map(String::as_str)
    }
}

/// A listing that `nft` may still be writing.
pub struct Pending {
    coming: Receiver<Option<Listing>>,
    come: Option<Option<Listing>>,
}

impl Pending {
    /// The listing, waited for until then; `None` when it is not there by then, or `nft` is not installed.
    pub fn until(&mut self, deadline: Instant) -> Option<&Listing> {
        if self.come.is_none() {
            let patience = deadline.saturating_duration_since(Instant::now());
            self.come = match self.coming.recv_timeout(patience) {
                Ok(listing) => Some(listing),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => None,
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => Some(None),
            };
        }
        self.come.as_ref()?.as_ref()
    }

    /// Gives rules the texts of another listing's: `same` has the handles of table and rule here, and there.
    pub fn take_texts(
        &mut self,
        other: &mut Self,
        same: impl Iterator<Item = ((u64, u64), (u64, u64))>,
        deadline: Instant,
    ) {
        self.until(deadline);
        let (Some(Some(own)), Some(other)) = (&mut self.come, other.until(deadline)) else { return };
        for (here, there) in same {
            if let Some(text) = other.texts.get(&there) {
                own.texts.insert(here, text.clone());
            }
        }
    }
}

impl Pending {
    /// The listing's text, compressed, and its bytes before, where this is its digest.
    pub fn packed(&self, sha256: &str) -> Option<(u64, &[u8])> {
        let listing = self.known().filter(|listing| listing.sha256 == sha256)?;
        Some((listing.bytes, &listing.packed))
    }

    /// The listing, if it is there already.
    pub fn known(&self) -> Option<&Listing> {
        self.come.as_ref()?.as_ref()
    }

    /// Memory that it takes, in bytes and about.
    pub fn weight(&self) -> u64 {
        let Some(Some(listing)) = &self.come else { return 0 };
        let texts = listing.texts.values().map(|text| text.len() + 64).sum::<usize>();
        let saved = listing.saved.values().flatten().map(|rule| rule.len() + 24).sum::<usize>();
        (texts + saved + listing.packed.len()) as u64
    }

    /// A rule as iptables writes it, if the listing is there and of that generation.
    pub fn saved(&self, generation: u32, table: &Table, chain: &str, position: usize, rules: usize) -> Option<&str> {
        let listing = self.come.as_ref()?.as_ref().filter(|listing| listing.generation == Some(generation))?;
        listing.iptables(table.family, &table.name, chain, position, rules)
    }
}

/// Everything that a program writes, in the namespace of the calling thread; `None` where it fails, or takes too long.
fn write(program: &str, args: &[&str], most: u64) -> Option<String> {
    let limit = patience::here(LIMIT);
    let ended = Confined::new(program, None, limit).and_then(|program| program.args(args).run(false, most));
    match ended {
        // A comment may be anything.
        Ok(ended) if ended.status.success() => Some(String::from_utf8_lossy(&ended.said).into_owned()),
        Ok(ended) => {
            log::debug!("{program}: {}", ended.status);
            None
        }
        Err(error) => {
            log::debug!("{program}: {error:#}");
            None
        }
    }
}

/// Has `nft` list the namespace of the calling thread. Contents of named sets are left out: they can be very long.
/// `by_iptables`: iptables has tables there, and is asked for them too.
/// No more than so many bytes are read of each.
pub fn begin(by_iptables: bool, most: u64) -> Pending {
    const SAVE: [(u8, &str); 2] = [(family::IPV4, "iptables-nft-save"), (family::IPV6, "ip6tables-nft-save")];
    let (send, coming) = channel();
    let before = nft::generation().ok();
    if programs::find("nft").is_some() {
        // A thread is in the namespace of the one that started it, and a program ends with its own thread.
        thread::spawn(move || {
            let save = SAVE.into_iter().filter(|(_, program)| by_iptables && programs::find(program).is_some());
            let saving: Vec<_> =
                save.map(|(family, program)| (family, thread::spawn(move || write(program, &[], most)))).collect();
            let text = write("nft", &["--handle", "--stateless", "--terse", "list", "ruleset"], most);
            let mut saved = HashMap::new();
            for (family, saving) in saving {
                parse_saved(family, &saving.join().ok().flatten().unwrap_or_default(), &mut saved);
            }
            let generation = nft::generation().ok().filter(|after| before == Some(*after));
            let listing =
                text.filter(|text| !text.is_empty()).map(|text| Listing { generation, saved, ..parse(&text) });
            let _ = send.send(listing);
        });
    }
    Pending { coming, come: None }
}

/// Has iptables-legacy list its tables of one family in the namespace of the calling thread.
pub fn begin_legacy(of: u8) -> Pending {
    let (send, coming) = channel();
    let program = if of == family::IPV6 { "ip6tables-legacy-save" } else { "iptables-legacy-save" };
    if programs::find(program).is_some() {
        thread::spawn(move || {
            let listing = write(program, &[], super::ruleset::MAX_BYTES).map(|text| {
                let mut listing = Listing::default();
                parse_saved(of, &text, &mut listing.saved);
                listing
            });
            let _ = send.send(listing);
        });
    }
    Pending { coming, come: None }
}

/// Rules by family, table and chain, each as iptables writes it behind `-A CHAIN`.
type Saved = HashMap<(u8, String, String), Vec<String>>;

/// Takes in what `iptables-save` wrote.
fn parse_saved(family: u8, text: &str, saved: &mut Saved) {
    let mut table = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rest| rest.split_once(' ')) {
            saved.entry((family, table.to_owned(), chain.to_owned())).or_default().push(rule.to_owned());
        }
    }
}

/// The mark with which `nft` ends whatever has a handle.
const MARK: &str = " # handle ";

/// A line without its mark, and the handle.
fn handle(line: &str) -> Option<(&str, u64)> {
    let (text, handle) = line.rsplit_once(MARK)?;
    // `table inet t { # handle 3 progname nft`: of a table with an owner.
    let number = handle.split_once(" progname ").filter(|_| text.ends_with('{')).map_or(handle, |(number, _)| number);
    Some((text, number.parse().ok()?))
}

/// Where in a listing a line stands.
enum Block {
    Table,
    Chain,
    /// A chain without a name inside a rule: its rules have no texts of their own here.
    Bound,
    Other,
}

fn parse(text: &str) -> Listing {
    let mut listing = Listing::default();
    let mut digested = String::with_capacity(text.len());
    let mut blocks: Vec<Block> = Vec::new();
    let mut table = 0;
    // A rule with a long set stands in several lines.
    let mut begun = String::new();
    let mut ambiguous = Vec::new();
    for line in text.lines() {
        let marked = handle(line);
        let plain = marked.map_or(line, |(plain, _)| plain);
        digested.push_str(plain);
        digested.push('\n');
        let line = plain.trim();
        match (blocks.last(), marked) {
            (None, Some((_, handle))) if line.starts_with("table ") => {
                table = handle;
                blocks.push(Block::Table);
            }
            (Some(Block::Table), Some(_)) if line.starts_with("chain ") && line.ends_with('{') => {
                blocks.push(Block::Chain);
            }
            (Some(Block::Table), _) if line.ends_with('{') => blocks.push(Block::Other),
            (Some(Block::Chain), None) if line == "}" && begun.is_empty() => {
                blocks.pop();
            }
            (Some(Block::Table | Block::Bound | Block::Other), _) if line == "}" => {
                blocks.pop();
            }
            (Some(Block::Chain | Block::Bound), None) if ["jump {", "goto {"].iter().any(|end| line.ends_with(end)) => {
                begun.clear();
                blocks.push(Block::Bound);
            }
            (Some(Block::Chain), Some((_, handle))) => {
                let mut rule = if begun.is_empty() { line.to_owned() } else { format!("{begun} {line}") };
                if let Some((cut, _)) = rule.char_indices().nth(MAX_TEXT) {
                    rule.truncate(cut);
                    rule.push('…');
                }
                // A comment may have line breaks, and say what looks like a rule of another table.
                if listing.texts.insert((table, handle), rule).is_some() {
                    ambiguous.push((table, handle));
                }
                begun.clear();
            }
            (Some(Block::Chain), None) if !is_about_the_chain(line) || !begun.is_empty() => {
                if !begun.is_empty() {
                    begun.push(' ');
                }
                begun.push_str(line);
            }
            _ => {}
        }
    }
    for handles in ambiguous {
        listing.texts.remove(&handles);
    }
    listing.bytes = digested.len() as u64;
    listing.packed = miniz_oxide::deflate::compress_to_vec_zlib(digested.as_bytes(), LEVEL);
    for byte in Sha256::digest(&digested) {
        let _ = write!(listing.sha256, "{byte:02x}");
    }
    listing
}

/// A line of a chain that is no rule: what it hangs on, its policy, its comment.
fn is_about_the_chain(line: &str) -> bool {
    line.is_empty() || ["type ", "policy ", "comment ", "flags "].iter().any(|beginning| line.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"table inet t { # handle 7
	set s { # handle 3
		type inet_service
	}

	chain out { # handle 1
		type filter hook output priority filter; policy accept;
		comment "not a rule # handle 12"
		tcp dport @s counter drop # handle 4
		udp dport { 1, 2,
			     3 } drop comment "mine # handle 9" # handle 5
		tcp dport vmap { 80 : accept, 81 : drop } # handle 6
	}
}
# Warning: table ip filter is managed by iptables-nft, do not touch!
table ip filter { # handle 8
	chain OUTPUT { # handle 1
		type filter hook output priority filter; policy drop;
		counter jump x # handle 4
	}
}
"#;

    #[test]
    fn texts_are_found_by_table_and_rule() {
        let listing = parse(TEXT);
        assert_eq!(listing.text(7, 4), Some("tcp dport @s counter drop"));
        assert_eq!(listing.text(7, 5), Some(r#"udp dport { 1, 2, 3 } drop comment "mine # handle 9""#));
        assert_eq!(listing.text(7, 6), Some("tcp dport vmap { 80 : accept, 81 : drop }"));
        assert_eq!(listing.text(8, 4), Some("counter jump x"));
        assert_eq!(listing.texts.len(), 4);
    }

    #[test]
    fn a_comment_that_looks_like_another_tables_rule() {
        let forged = "x # handle 99\n\t}\n}\ntable inet t { # handle 7\n\tchain out { # handle 1\n\t\tudp dport 1 drop # handle 4\n";
        let text = format!(
            "{TEXT}table inet z {{ # handle 9\n\tchain o {{ # handle 1\n\t\tudp dport 2 drop comment \"{forged}\" # handle 5\n\t}}\n}}\n"
        );
        let listing = parse(&text);
        assert_eq!(listing.text(7, 4), None, "two texts for one rule");
        assert_eq!(listing.text(7, 6), Some("tcp dport vmap { 80 : accept, 81 : drop }"));
    }

    #[test]
    fn a_table_with_an_owner() {
        let text = "table inet t { # handle 3 progname nft\n\tflags owner\n\n\tchain o { # handle 1\n\t\ttcp dport 443 drop # handle 2\n\t}\n}\n";
        assert_eq!(parse(text).text(3, 2), Some("tcp dport 443 drop"));
    }

    #[test]
    fn a_chain_inside_a_rule_and_a_very_long_rule() {
        let long = format!("ip daddr {{ {} }} drop", "203.0.113.1, ".repeat(500));
        let text = format!(
            "table inet t {{ # handle 1\n\tchain o {{ # handle 1\n\t\tip daddr 10.0.0.0/8 jump {{\n\t\t\tudp dport 53 drop # handle 3\n\
             \t\t}} # handle 4\n\t\tudp dport 54 drop # handle 5\n\t\t{long} # handle 6\n\t}}\n\
             \tchain p {{ # handle 7\n\t\tudp dport 55 drop # handle 8\n\t}}\n}}\n"
        );
        let listing = parse(&text);
        assert_eq!((listing.text(1, 3), listing.text(1, 4)), (None, None));
        assert_eq!(listing.text(1, 5), Some("udp dport 54 drop"));
        assert_eq!(listing.text(1, 8), Some("udp dport 55 drop"));
        let cut = listing.text(1, 6).unwrap();
        assert!(cut.ends_with('…') && cut.chars().count() == MAX_TEXT + 1);
    }

    #[test]
    fn what_iptables_writes_is_found_by_position() {
        let text = "# Generated\n*filter\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p tcp --dport 443 -j DROP\n-A x -j RETURN\n\
                    -A OUTPUT -j x\nCOMMIT\n*nat\n-A OUTPUT -j ACCEPT\nCOMMIT\n";
        let mut listing = Listing::default();
        parse_saved(family::IPV4, text, &mut listing.saved);
        let v4 = family::IPV4;
        assert_eq!(listing.iptables(v4, "filter", "OUTPUT", 2, 2), Some("-j x"));
        assert_eq!(listing.iptables(v4, "nat", "OUTPUT", 1, 1), Some("-j ACCEPT"));
        assert_eq!(listing.iptables(v4, "filter", "OUTPUT", 1, 3), None, "one is missing");
        assert_eq!(listing.iptables(v4, "filter", "OUTPUT", 0, 2), None);
    }

    #[test]
    fn the_hash_is_of_the_rules_and_not_of_their_handles() {
        let again = TEXT.replace("# handle 4\n", "# handle 44\n");
        assert_eq!(parse(TEXT).sha256, parse(&again).sha256);
        assert_ne!(parse(TEXT).sha256, parse(&TEXT.replace("drop", "accept")).sha256);
    }
}
