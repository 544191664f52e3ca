//! Which rule dropped a packet, as the kernel half can tell: nftables frees the packet inside the function that walked the
//! rules, whose frame on the stack still holds the rule and the chain. Where in the frame is the compiler's choice: user
//! space learns it from packets of its own that known rules drop, and writes it into [`RuleConfig`].

/// Words of the stack that a proof looks at, from the tracepoint's arguments on: past the frame of `nft_do_chain`. A
/// power of two.
pub const FRAME_WORDS: usize = 128;
/// Packets of a proof, told apart by their UDP destination port: `1` up to here.
pub const MAX_PROOFS: usize = 16;
/// Places at which nftables frees what it drops, that can be learnt.
pub const MAX_SITES: usize = 8;
/// A word that a [`RuleSite`] does not have.
pub const NO_WORD: u64 = u64::MAX;

/// A place inside `nft_do_chain` that frees a packet, and where its frame then is. Words are counted from the tracepoint's
/// arguments on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RuleSite {
    /// Address that the tracepoint names; 0 for none.
    pub location: u64,
    /// Word with the return address, which is that location.
    pub return_word: u64,
    /// Word with the address of the rule; [`NO_WORD`] where a chain's policy drops.
    pub rule_word: u64,
    /// Word with the address of the base chain.
    pub chain_word: u64,
    /// Not 0 where policies drop at the same place: then the word of the rule has the mark behind the last one.
    pub last_is_policy: u64,
}

/// What the kernel half must know, as whole words. All zero: nothing is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RuleConfig {
    /// Inode number of the network namespace whose packets are a proof's: told in [`RuleProof`], and otherwise not seen. 0
    /// for none.
    pub proof_netns: u64,
    /// Not 0 when the proof's frames are wanted too.
    pub wants_frames: u64,
    /// Offset of `nft_chain.table`.
    pub chain_table: u64,
    /// Offset of `nft_chain.handle`.
    pub chain_handle: u64,
    /// Offset of `nft_table.handle`.
    pub table_handle: u64,
    /// Lowest bit of `nft_rule_dp.handle` in its first word.
    pub rule_handle_bit: u64,
    /// The handle's bits, shifted down.
    pub rule_handle_mask: u64,
    /// So many of the sites are proven; the rest is used for the proof's packets alone.
    pub proven: u64,
    /// What is learnt.
    pub sites: [RuleSite; MAX_SITES],
}

/// Words of a [`RuleConfig`].
pub const RULE_CONFIG_WORDS: usize = size_of::<RuleConfig>() / size_of::<u64>();

impl RuleConfig {
    /// The words that it is made of, in the order of its fields.
    pub fn words(&self) -> [u64; RULE_CONFIG_WORDS] {
        let mut words = [0; RULE_CONFIG_WORDS];
        let sites = self
            .sites
            .iter()
            .flat_map(|site| [site.location, site.return_word, site.rule_word, site.chain_word, site.last_is_policy]);
        let all = [
            self.proof_netns,
            self.wants_frames,
            self.chain_table,
            self.chain_handle,
            self.table_handle,
            self.rule_handle_bit,
            self.rule_handle_mask,
            self.proven,
        ];
        for (word, value) in words.iter_mut().zip(all.into_iter().chain(sites)) {
            *word = value;
        }
        words
    }
}

/// What the kernel half knows of the rule; all zero when it knows nothing. Handles are nftables' own numbers: in one network
/// namespace a table's is never used twice, and a chain's and a rule's not in their table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct RuleAnswer {
    /// Cookie of the network namespace, a number that the kernel never uses twice.
    pub netns_cookie: u64,
    /// Handle of the table.
    pub table: u64,
    /// Handle of the base chain at which the walk began.
    pub chain: u64,
    /// Handle of the rule; 0 for the base chain's policy.
    pub rule: u64,
}

/// A word of the stack, and what it would point to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FrameWord {
    /// The word.
    pub value: u64,
    /// The word at that address; 0 where it cannot be read, likewise below.
    pub target: u64,
    /// As if it were a chain's address: its handle.
    pub chain_handle: u64,
    /// Its table's handle.
    pub table_handle: u64,
}

/// What became of one packet of a proof.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RuleProof {
    /// Address that freed it; 0 when nothing was freed yet.
    pub location: u64,
    /// What the sites that were configured then gave.
    pub answer: RuleAnswer,
    /// The stack, where it was wanted.
    pub frame: [FrameWord; FRAME_WORDS],
}

const _: () = assert!(FRAME_WORDS.is_power_of_two());
const _: () = assert!(size_of::<RuleConfig>() == 8 * (8 + 5 * MAX_SITES));
const _: () = assert!(size_of::<RuleProof>() == 8 * (5 + 4 * FRAME_WORDS));

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::offset_of;

    #[test]
    fn words_are_in_the_order_of_the_fields() {
        let site = RuleSite { location: 8, return_word: 9, rule_word: 10, chain_word: 11, last_is_policy: 12 };
        let mut sites = [RuleSite::default(); MAX_SITES];
        sites[1] = site;
        let config = RuleConfig {
            proof_netns: 1,
            wants_frames: 2,
            chain_table: 3,
            chain_handle: 4,
            table_handle: 5,
            rule_handle_bit: 6,
            rule_handle_mask: 7,
            proven: 13,
            sites,
        };
        let words = config.words();
        let at = |offset: usize| words[offset / size_of::<u64>()];
        assert_eq!((at(offset_of!(RuleConfig, proof_netns)), at(offset_of!(RuleConfig, wants_frames))), (1, 2));
        assert_eq!((at(offset_of!(RuleConfig, chain_table)), at(offset_of!(RuleConfig, chain_handle))), (3, 4));
        assert_eq!((at(offset_of!(RuleConfig, table_handle)), at(offset_of!(RuleConfig, proven))), (5, 13));
        assert_eq!(at(offset_of!(RuleConfig, rule_handle_bit)), 6);
        assert_eq!(at(offset_of!(RuleConfig, rule_handle_mask)), 7);
        let second = offset_of!(RuleConfig, sites) / size_of::<u64>() + size_of::<RuleSite>() / size_of::<u64>();
        assert_eq!(words[second..second + 5], [8, 9, 10, 11, 12]);
    }
}
