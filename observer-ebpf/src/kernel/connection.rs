//! `skb->_nfct`: the connection that connection tracking knows a packet of, and what it is to it.

/// The state lies in the low bits (`NFCT_INFOMASK`).
const INFO: u64 = 7;
/// `IP_CT_IS_REPLY`: from here on it goes the other way than the connection's first packet.
const REPLY: u64 = 3;
/// `IP_CT_RELATED_REPLY`.
const RELATED_REPLY: u64 = 4;

/// The `struct nf_conn`, or 0.
#[inline(always)]
pub fn of(nfct: u64) -> u64 {
    nfct & !INFO
}

/// It goes the other way than the first packet.
#[inline(always)]
pub fn is_answer(nfct: u64) -> bool {
    of(nfct) != 0 && nfct & INFO >= REPLY && nfct & INFO <= RELATED_REPLY
}

/// It is an error about one of its packets.
#[inline(always)]
pub fn is_error(nfct: u64) -> bool {
    of(nfct) != 0 && nfct & INFO == RELATED_REPLY
}
