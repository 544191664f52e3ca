//! The host's firewalls: which decide here ([`inventory`]), and the netlink of nftables ([`nft`]).

pub mod inventory;
pub mod nft;
