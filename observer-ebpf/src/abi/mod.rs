//! What crosses between the eBPF side and user space.
//!
//! Every type is `repr(C)`, made of integers and byte arrays only, without implicit padding, and its size is asserted
//! at compile time. The program carries the eBPF side that was built with it, so both always have the same. User space
//! (feature `user`) makes them from bytes and bytes from them, which `zerocopy` allows only of types without padding.

mod awaited;
mod counters;
mod filter;
mod hanging;
mod layout;
mod names;
mod process;
mod record;
mod rule;
mod task;

pub use awaited::{AwaitedKey, AwaitedValue, MAX_AWAITED};
pub use counters::Counter;
pub use filter::{FILTER_VALUES, FILTER_WORDS, FilterNetwork, KernelFilter, Member, TICK_NS};
pub use hanging::HangingRecord;
pub use layout::{ABSENT, CAST, Layout};
pub use names::{map, program};
pub use process::{ARGS_BYTES, FlowRecord, NAME_BYTES, PATH_BYTES, ProcessEvent, ProcessRecord, process_flag};
pub use record::{
    Account, Cause, Counted, Direction, DropKey, DropRecord, Hook, MAX_COARSE_KEYS, MAX_KEYS, NEIGHBOUR_WAIT_NS,
    OwnerSource, PACKET_BYTES, Tuple, answer, flag, place,
};
pub use rule::{
    Extent, FRAME_WORDS, FRAMES_OF_FREE, FRAMES_OF_VERDICT, FROM_QUEUE, FrameWord, HookFunction, HookKind, HookSite,
    MAX_FUNCTIONS, MAX_OWN, MAX_PROOFS, MAX_SITES, NO_WORD, RULE_CONFIG_WORDS, RuleAnswer, RuleConfig, RuleProof,
    RuleSite, UNKNOWN_RULE, UNTAKEN, VerdictNumbers, VerdictSite,
};
pub use task::{COMM_BYTES, Owner, Task};
