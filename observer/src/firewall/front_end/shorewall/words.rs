//! Shorewall's words: its chains are called after zones, or after what they do.

use super::NAME;
use crate::{
    firewall::front_end::{ALL, Place, line::Does, words::plain},
    model::Statement,
};

/// A rule in a table that Shorewall made, in a chain whose name is nobody's: not what others' chains lead to.
pub(super) fn statement(place: &Place<'_>) -> Option<Statement> {
    let named = place.named;
    let prefixes = || ALL.iter().flat_map(|front_end| front_end.chain_prefixes());
    let is_owned = |chain: &String| prefixes().any(|prefix| chain.starts_with(prefix));
    // It always makes this chain, and leaves it empty.
    let is_shorewalls = place.chains.iter().any(|chain| chain.name == NAME)
        && !is_owned(&named.chain)
        && !named.path.iter().any(is_owned);
    if is_shorewalls { Some(plain(NAME, sentence(place), place.text()?)) } else { None }
}

/// Its chains are called after two zones, such as `fw-net`; what ends there is often in a chain that all of them lead to.
fn sentence(place: &Place<'_>) -> String {
    let named = place.named;
    let position = |position: Option<usize>| position.map(|position| format!(", rule {position}")).unwrap_or_default();
    let zones = |chain: &str| {
        let (from, to) = chain.split_once('-').or_else(|| chain.split_once('2'))?;
        (!chain.starts_with("sha-") && !from.is_empty() && !to.is_empty()).then(|| (from.to_owned(), to.to_owned()))
    };
    let between = named.path.iter().rev().find_map(|chain| Some((chain, zones(chain)?)));
    match between {
        Some((chain, (from, to))) if *chain == named.chain => {
            format!("shorewall's chain {chain}, from zone {from} to zone {to}{}", position(named.position))
        }
        Some((chain, (from, to))) => {
            // Where only one of its rules leads on, it is that one.
            let here = place.all.iter().filter(|rule| rule.chain == *chain).enumerate();
            let mut leading = here.filter(
                |(_, rule)| matches!(Does::of(rule), Does::Leads(to) if named.path.iter().any(|step| step == to)),
            );
            let index = leading.next().filter(|_| leading.next().is_none()).map(|(index, _)| index + 1);
            format!("shorewall's chain {chain}, from zone {from} to zone {to}{}, by {}", position(index), named.chain)
        }
        None => format!("shorewall's chain {}{}", named.chain, position(named.position)),
    }
}
