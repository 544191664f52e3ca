//! Which rule dropped a packet, as the eBPF side can tell: nftables frees the packet inside the function that walked the
//! rules, whose frame on the stack still holds the rule and the chain. What else hangs on netfilter's hooks has its packet
//! freed by the function that walked the hooks, whose frame still holds which of them it was. Where in the frame is the
//! compiler's choice: user space learns it from packets of its own that known rules and programs drop, and writes it into
//! [`RuleConfig`].
//!
//! Kernels in which nftables leaves it to the hooks' walker to free a packet have forgotten the rule by then. There the
//! functions that give verdicts are probed while something is being blocked: the walker of the rules called them, and its
//! registers and frame are learnt in the same way.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Words of the stack that a proof looks at, from the tracepoint's arguments on: past the frame of `nft_do_chain`. A
/// power of two.
pub const FRAME_WORDS: usize = 128;
/// Packets of a proof, told apart by their UDP destination port: `1` up to here.
pub const MAX_PROOFS: usize = 16;
/// Network namespaces of observer's own that packets are replayed in.
pub const MAX_OWN: usize = 512;
/// Places at which nftables frees what it drops, that can be learnt.
pub const MAX_SITES: usize = 8;
/// A word that a [`RuleSite`] does not have.
pub const NO_WORD: u64 = u64::MAX;

/// [`RuleConfig::wants_frames`]: the stack where a packet is freed.
pub const FRAMES_OF_FREE: u64 = 1;
/// [`RuleConfig::wants_frames`]: registers and stack where a verdict is given. Of each word the frame then has the head of the
/// rule that it would lead to by way of another word ([`FrameWord::value`]) and at once ([`FrameWord::target`]).
pub const FRAMES_OF_VERDICT: u64 = 2;

/// A place inside `nft_do_chain` that frees a packet, and where its frame then is. Words are counted from the tracepoint's
/// arguments on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
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

/// The place inside `nf_hook_slow` that frees what a hook's function drops, and where its frame then is. Words are counted
/// from the tracepoint's arguments on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct HookSite {
    /// Address that the tracepoint names; 0 for none.
    pub location: u64,
    /// Word with the return address, which is that location.
    pub return_word: u64,
    /// Word with the address of the hook's list of functions.
    pub entries_word: u64,
    /// Word whose low half is the place in that list.
    pub index_word: u64,
}

/// Where a rule's walker has what, when it has called a function that gives a verdict. Words are counted over the registers
/// and, behind them, the stack from the stack pointer on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct VerdictSite {
    /// Word with the address of the rule, or of a place that has it.
    pub rule_word: u64,
    /// Not 0 when it is a place that has the rule's address.
    pub indirect: u64,
    /// Word with the address of the base chain.
    pub chain_word: u64,
    /// How far the stack pointer is from where it was once the function has returned.
    pub distance: u64,
    /// Not 0 when this is learnt.
    pub learnt: u64,
}

/// What this kernel's numbers are for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct VerdictNumbers {
    /// Offset of `nft_pktinfo.skb`; 0 is one too.
    pub packet_skb: u64,
    /// Words of a `struct pt_regs`.
    pub registers: u64,
    /// Offset of the stack pointer in it.
    pub stack_pointer: u64,
    /// Offset of the word of a rule that has its handle.
    pub rule_head: u64,
    /// Lowest bit of the handle in that word.
    pub handle_bit: u64,
    /// The handle's bits, shifted down; 0 when nothing is to be looked at.
    pub handle_mask: u64,
}

/// Functions on netfilter's hooks of whose own data something is known. Values are part of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum HookKind {
    /// nftables: a base chain.
    Nftables = 1,
    /// A BPF netfilter program.
    Program = 2,
    /// iptables-legacy, since it names its table there (5.16).
    Xtables = 3,
}

/// Such a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct HookFunction {
    /// Its address; 0 for none.
    pub address: u64,
    /// A [`HookKind`].
    pub kind: u64,
}

/// [`HookFunction`]s at most.
pub const MAX_FUNCTIONS: usize = 16;

/// Instructions of a function of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct Extent {
    /// Address of the first; 0 for none.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What the eBPF side must know, as whole words. All zero: nothing is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct RuleConfig {
    /// Inode number of the network namespace whose packets are a proof's: told in [`RuleProof`], and otherwise not seen. 0
    /// for none.
    pub proof_netns: u64,
    /// Whose frames are wanted of the proof's packets: 0 nobody's, or one of [`FRAMES_OF_FREE`], [`FRAMES_OF_VERDICT`].
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
    /// Offset of `nf_hook_entries.hooks`.
    pub entries_hooks: u64,
    /// Bytes of a `struct nf_hook_entry`, and the offset of its `priv`; its `hook` comes first.
    pub entry_bytes: u64,
    /// See [`Self::entry_bytes`].
    pub entry_private: u64,
    /// Offset of `bpf_prog.aux`.
    pub program_aux: u64,
    /// Offset of `bpf_prog_aux.id`.
    pub aux_id: u64,
    /// Offset of `xt_table.name`.
    pub xtable_name: u64,
    /// The function that takes a packet back from a queue, and frees what was refused, there or by what comes next.
    pub refused: Extent,
    /// The function that frees what no program takes from a queue.
    pub untaken: Extent,
    /// Not 0 when `hook_site` is proven; else it is used for the proof's packets alone.
    pub hook_proven: u64,
    /// What is learnt of hooks.
    pub hook_site: HookSite,
    /// What is learnt of verdicts.
    pub verdict_site: VerdictSite,
    /// What must be known for them.
    pub verdict: VerdictNumbers,
    /// Not 0 when `verdict_site` is proven; else it is used for the proof's packets alone.
    pub verdict_proven: u64,
    /// What is known of functions on hooks.
    pub functions: [HookFunction; MAX_FUNCTIONS],
    /// What is learnt of rules.
    pub sites: [RuleSite; MAX_SITES],
}

/// Words of a [`RuleConfig`].
pub const RULE_CONFIG_WORDS: usize = size_of::<RuleConfig>() / size_of::<u64>();

/// [`RuleAnswer::table`] of a packet that was freed on its way back from a queue, and of one that no program took.
pub const FROM_QUEUE: u64 = 1;
/// See [`FROM_QUEUE`].
pub const UNTAKEN: u64 = 2;

/// [`RuleAnswer::rule`] where the base chain is known, and not what in it dropped the packet.
pub const UNKNOWN_RULE: u64 = u64::MAX;

/// What the eBPF side knows of the rule, or of what else decided; all zero when it knows nothing. Handles are nftables' own
/// numbers: in one network namespace a table's is never used twice, and a chain's and a rule's not in their table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct RuleAnswer {
    /// Cookie of the network namespace, a number that the kernel never uses twice; 0 where the kernel has none.
    pub netns_cookie: u64,
    /// Address of the function on the hook that dropped it; 0 where nftables freed it itself, or a queue did.
    pub function: u64,
    /// Handle of the table; of iptables-legacy the first bytes of its name; of a queue [`FROM_QUEUE`] or [`UNTAKEN`].
    pub table: u64,
    /// Handle of the base chain at which the walk began.
    pub chain: u64,
    /// Handle of the rule; 0 for the base chain's policy, or [`UNKNOWN_RULE`]. Of a BPF netfilter program its id; of a queue the
    /// process in whose call the packet was freed on its way back.
    pub rule: u64,
}

/// A word of the stack, and what it would point to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
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
#[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
#[repr(C)]
pub struct RuleProof {
    /// Address that freed it; 0 when nothing was freed yet.
    pub location: u64,
    /// What the sites that were configured then gave.
    pub answer: RuleAnswer,
    /// Handle of the rule that gave the verdict, where that is probed; 0 for none, [`UNKNOWN_RULE`] for one in another chain.
    pub given: u64,
    /// The stack, where it was wanted.
    pub frame: [FrameWord; FRAME_WORDS],
}

const _: () = assert!(FRAME_WORDS.is_power_of_two());
const _: () = assert!(size_of::<RuleConfig>() == 8 * (35 + 2 * MAX_FUNCTIONS + 5 * MAX_SITES));
const _: () = assert!(size_of::<RuleProof>() == 8 * (7 + 4 * FRAME_WORDS));
