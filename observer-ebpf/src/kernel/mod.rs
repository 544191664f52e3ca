//! Typed field reads, the owner map, the counters and the ring: the only unsafe code of the eBPF side.

pub mod asked;
pub mod awaited;
pub mod connection;
pub mod counters;
pub mod drop;
pub mod filter;
pub mod flow;
pub mod layout;
pub mod link;
pub mod netns;
pub mod own;
pub mod owner;
pub mod path;
pub mod process;
pub mod proof;
pub mod read;
pub mod rule;
pub mod scratch;
pub mod share;
pub mod skb;
pub mod sock;
pub mod tally;
pub mod task;
pub mod time;
pub mod tree;
pub mod verdict;
