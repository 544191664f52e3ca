//! The running kernel: its types (BTF), symbols and layouts, clocks, cgroups, netlink and the cookies of network namespaces. A leaf: it
//! knows no other room but `sys`.

pub mod btf;
pub mod cgroup;
pub mod clock;
mod cookies;
pub mod layout;
pub mod loopback;
pub(crate) mod netlink;
pub(crate) mod sock_diag;
pub mod symbols;

pub use cookies::{ask_ebpf_side, netns_cookie};
