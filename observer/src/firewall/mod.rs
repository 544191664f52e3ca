//! The host's firewalls: which decide here ([`inventory`]), what of them can stop what goes out ([`denies`]), and the
//! netlink of nftables ([`nft`]).

pub mod denies;
pub mod inventory;
pub mod nft;
