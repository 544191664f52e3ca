//! Policies of IPsec. They are not copied: what they encrypt leaves as another packet.

use std::{net::IpAddr, path::Path};

use anyhow::{Context, Result};
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
const SOURCE_AT: usize = 16;
const PORT_AT: usize = 32;
const SOURCE_PORT_AT: usize = 36;
const SOURCE_PREFIX_AT: usize = 43;
/// `XFRM_POLICY_IN`, `XFRM_POLICY_FWD`, `XFRM_POLICY_ALLOW`; `XFRMA_TMPL`, `XFRMA_MARK` and `XFRMA_IF_ID`
const IN: u8 = 0;
const FORWARD: u8 = 2;
const ALLOW: u8 = 0;
const TEMPLATES: u16 = 5;
const MARK: u16 = 21;
const INTERFACE: u16 = 31;

/// Traffic with these addresses is encrypted, expected to be, or blocked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Policy {
    /// Those of the other end.
    with: ipnet::IpNet,
    /// By this protocol alone; 0 for any.
    protocol: u8,
    /// The other end's port, in the bits that are set in the second number.
    port: (u16, u16),
    /// It lets nothing pass.
    blocks: bool,
    /// It is about packets with a mark.
    by_mark: bool,
}

/// The kernel can list them without loading a module.
pub(super) fn is_there() -> bool {
    Path::new("/sys/module/xfrm_user").exists()
        || Btf::of_kernel().is_ok_and(|btf| btf.has_function("xfrm_dump_policy"))
}

/// Those of the calling thread's namespace. A policy that belongs to a tunnel's interface is left out: whatever leaves by that is
/// encrypted, and rules about it are asked before.
pub(super) fn list() -> Result<Vec<Policy>> {
    let all = Netlink::open(PROTOCOL, FIXED)?.dump(GETPOLICY, &Body::new(&[0; QUESTION]))?;
    let is_of_a_tunnel = |body: &Body| body.attributes.get(INTERFACE).is_some();
    let mut found = Vec::new();
    for body in all.iter().filter(|body| !is_of_a_tunnel(body)) {
        found.extend(policies(body).context("a policy of IPsec cannot be read")?);
    }
    Ok(found)
}

/// Why traffic with another end cannot be tested: what decides about it. `by` is its protocol and the other end's port;
/// `has_marks`: its packets may be marked.
pub(super) fn why_untested(
    policies: &[Policy],
    other: IpAddr,
    by: Option<(u8, u16)>,
    has_marks: impl Fn() -> bool,
) -> Option<String> {
    let of_it = policies.iter().filter(|policy| policy.is_about(other, by) && (!policy.by_mark || has_marks()));
    let blocks = of_it.map(|policy| policy.blocks).max()?;
    let does = if blocks { "block" } else { "encrypt" };
    Some(format!("IPsec may {does} traffic with {other} (`ip xfrm policy`), which cannot be tested in a copy"))
}

/// The same of each of these other ends, by the policies of the calling thread's namespace: there is no copy.
pub(crate) fn under_ipsec(others: &[Option<IpAddr>]) -> Result<Vec<Option<String>>> {
    let policies = if is_there() { list()? } else { Vec::new() };
    Ok(others.iter().map(|other| why_untested(&policies, (*other)?, None, || true)).collect())
}

/// What one policy is about; nothing where it lets everything pass as it is.
fn policies(body: &Body) -> Option<Vec<Policy>> {
    let byte = |at: usize| body.fixed.get(at).copied();
    let is_v6 = u16::from_ne_bytes([byte(FAMILY_AT)?, byte(FAMILY_AT + 1)?]) == libc::AF_INET6 as u16;
    let net = |at: usize, prefix_at: usize| {
        let bytes = body.fixed.get(at..at + 16)?;
        let address: IpAddr = if is_v6 {
            <[u8; 16]>::try_from(bytes).ok()?.into()
        } else {
            <[u8; 4]>::try_from(&bytes[..4]).ok()?.into()
        };
        ipnet::IpNet::new(address, byte(prefix_at)?).ok()
    };
    let (direction, protocol) = (byte(DIRECTION_AT)?, byte(PROTOCOL_AT)?);
    // Those of single sockets are none of a host's.
    let decides = direction <= FORWARD && (byte(ACTION_AT)? != ALLOW || body.attributes.get(TEMPLATES).is_some());
    let (to, from) = (net(0, PREFIX_AT)?, net(SOURCE_AT, SOURCE_PREFIX_AT)?);
    let port = |at: usize| {
        let two = |at: usize| Some(u16::from_be_bytes([byte(at)?, byte(at + 1)?]));
        Some((two(at)?, two(at + 2)?))
    };
    let (to, from) = ((to, port(PORT_AT)?), (from, port(SOURCE_PORT_AT)?));
    let with = match direction {
        _ if !decides => Vec::new(),
        IN => vec![from],
        FORWARD => vec![to, from],
        _ => vec![to],
    };
    // `struct xfrm_mark`: a value and a mask. A value of zero is that of packets without a mark.
    let word = |bytes: &[u8], at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let by_mark = body
        .attributes
        .get(MARK)
        .is_some_and(|mark| word(mark, 0).zip(word(mark, 4)).is_none_or(|(value, mask)| value & mask != 0));
    let blocks = byte(ACTION_AT)? != ALLOW;
    Some(with.into_iter().map(|(with, port)| Policy { with, protocol, port, blocks, by_mark }).collect())
}

impl Policy {
    /// It may decide about what is sent there by this protocol and to this port, or by any, or about the answer.
    fn is_about(&self, other: IpAddr, by: Option<(u8, u16)>) -> bool {
        let is_of = |(protocol, port): (u8, u16)| {
            let (of, mask) = self.port;
            (self.protocol == 0 || self.protocol == protocol) && (of ^ port) & mask == 0
        };
        self.with.contains(&other) && by.is_none_or(is_of)
    }
}
