//! Commands of `nft` as they are run in a private copy, whose rules have handles of their own.

use anyhow::{Context, Result, bail, ensure};

/// With the copy's handle, where a rule is named by one: `handle` gives it for family, table and handle on the host.
pub(super) fn in_the_copy(words: &[String], handle: &dyn Fn(&str, &str, u64) -> Option<u64>) -> Result<Vec<String>> {
    const FAMILIES: [&str; 6] = ["inet", "ip", "ip6", "netdev", "arp", "bridge"];
    // It may have been given as one word.
    let mut words: Vec<String> = words.join(" ").split_whitespace().map(str::to_owned).collect();
    let Some(at) = words.iter().position(|word| ["handle", "position", "index"].contains(&word.as_str())) else {
        return Ok(words);
    };
    let plain = "only `nft VERB rule FAMILY TABLE CHAIN handle N …` can be tried with a rule's number";
    let of_rule = words.iter().position(|word| word == "rule").with_context(|| plain.to_owned())?;
    let (family, table) = match &words[of_rule + 1..] {
        [family, table, ..] if FAMILIES.contains(&family.as_str()) => (family.clone(), table.clone()),
        [table, ..] => ("ip".to_owned(), table.clone()),
        [] => bail!("{plain}"),
    };
    ensure!(words[at] != "index" && !words.iter().any(|word| word.contains(';')), "{plain}");
    let number = words.get_mut(at + 1).with_context(|| plain.to_owned())?;
    let there: u64 = number.parse().with_context(|| format!("`{number}` is no handle"))?;
    let here = handle(&family, &table, there).with_context(|| format!("there is no rule with handle {there}"))?;
    *number = here.to_string();
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_the_copys() {
        let handle =
            |family: &str, table: &str, there: u64| (family == "inet" && table == "filter" && there == 7).then_some(12);
        let of = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            in_the_copy(&words, &handle).map(|words| words.join(" "))
        };
        assert_eq!(of("nft delete rule inet filter o handle 7").unwrap(), "nft delete rule inet filter o handle 12");
        assert_eq!(of("nft add rule ip filter o drop").unwrap(), "nft add rule ip filter o drop");
        for line in [
            "nft delete rule inet filter o handle 8",
            "nft delete rule filter o handle 7",
            "nft delete rule inet filter o handle x",
            "nft insert rule inet filter o index 7 drop",
            "nft delete rule inet filter o handle 7; flush ruleset",
            "nft delete chain inet filter handle 7",
        ] {
            assert!(of(line).is_err(), "{line}");
        }
    }
}
