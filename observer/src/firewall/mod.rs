//! The host's firewalls: which decide here ([`inventory`]), what of them can block outbound traffic ([`denies`]), the netlink
//! of nftables ([`nft`], [`build`]), a ruleset with the texts that people know ([`ruleset`], [`listing`]), what its rules are in
//! the words of those who manage them ([`front_end`], by their [`files`]), and netfilter's numbers ([`netfilter`]).

pub mod build;
pub mod denies;
pub mod entrance;
pub mod files;
pub mod front_end;
pub mod inventory;
pub mod legacy;
pub mod listing;
pub mod netfilter;
pub mod nft;
pub mod ruleset;
