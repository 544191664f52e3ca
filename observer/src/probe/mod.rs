//! From the running kernel to attached programs.
//!
//! Reads BTF ([`btf`]), resolves what the BPF half needs ([`layout`]), loads and attaches every program in the best way
//! that this kernel takes ([`hooks`], [`attach`]). A way is chosen by trying it, never by kernel version. Everything is
//! attached through links, so it is gone when the process is, however it ends.

pub mod attach;
pub mod btf;
pub mod cgroup;
mod cookies;
pub mod hooks;
pub mod layout;
mod learn;
mod maps;
pub mod proof;
pub mod rules;
pub mod selftest;
pub mod symbols;
pub mod totals;

pub use attach::{AttachError, Probes, program_names};
pub use cookies::{ask_kernel_half, netns_cookie};
pub use hooks::{HOOKS, Hook, HookState, Way};
pub use maps::{Awaited, Tree};
pub use totals::Totals;
