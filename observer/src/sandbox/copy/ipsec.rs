//! Policies by which IPsec takes what a namespace sends. They are not copied: what they take leaves as another packet.

use std::{net::IpAddr, path::Path};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::kernel::{
    btf::Btf,
    netlink::{Body, Netlink},
};

/// `NETLINK_XFRM`, `XFRM_MSG_GETPOLICY`, and a `struct xfrm_userpolicy_info`.
const PROTOCOL: isize = 6;
const GETPOLICY: u16 = 0x15;
const FIXED: usize = 168;
/// A `struct xfrm_userpolicy_id`.
const QUESTION: usize = 64;
/// Where what it is about has the length of the destination's prefix and the protocol, and the policy its direction and action.
const PREFIX_AT: usize = 42;
const PROTOCOL_AT: usize = 44;
const FAMILY_AT: usize = 40;
const DIRECTION_AT: usize = 160;
const ACTION_AT: usize = 161;
/// `XFRM_POLICY_OUT`, `XFRM_POLICY_FWD`, `XFRM_POLICY_ALLOW`; `XFRMA_TMPL`
const OUT: u8 = 1;
const FORWARD: u8 = 2;
const ALLOW: u8 = 0;
const TEMPLATES: u16 = 5;

/// What is sent to these addresses is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Policy {
    to: ipnet::IpNet,
    /// By this protocol alone; 0 for any.
    protocol: u8,
}

/// The kernel has what lists them: nothing is loaded for it.
pub(super) fn is_there() -> bool {
    Path::new("/sys/module/xfrm_user").exists()
        || Btf::of_kernel().is_ok_and(|btf| btf.has_function("xfrm_dump_policy"))
}

/// Those of the calling thread's namespace that take what it sends.
pub(super) fn list() -> Result<Vec<Policy>> {
    let all = Netlink::open(PROTOCOL, FIXED)?.dump(GETPOLICY, &Body::new(&[0; QUESTION]))?;
    Ok(all.iter().filter_map(policy).collect())
}

fn policy(body: &Body) -> Option<Policy> {
    let byte = |at: usize| body.fixed.get(at).copied();
    let is_sent = matches!(byte(DIRECTION_AT)?, OUT | FORWARD);
    // One that lets pass without doing anything takes nothing.
    let takes = byte(ACTION_AT)? != ALLOW || body.attributes.get(TEMPLATES).is_some();
    let address: IpAddr = if u16::from_ne_bytes([byte(FAMILY_AT)?, byte(FAMILY_AT + 1)?]) == libc::AF_INET6 as u16 {
        <[u8; 16]>::try_from(body.fixed.get(..16)?).ok()?.into()
    } else {
        <[u8; 4]>::try_from(body.fixed.get(..4)?).ok()?.into()
    };
    let to = ipnet::IpNet::new(address, byte(PREFIX_AT)?).ok()?;
    (is_sent && takes).then_some(Policy { to, protocol: byte(PROTOCOL_AT)? })
}

impl Policy {
    /// It may take what is sent there by this protocol.
    pub(super) fn takes(&self, to: IpAddr, protocol: u8) -> bool {
        self.to.contains(&to) && (self.protocol == 0 || self.protocol == protocol)
    }
}
