//! From the running kernel to attached programs.
//!
//! Loads and attaches every program in the best way that this kernel takes ([`hooks`], [`attach`]), and sees that it works
//! ([`calibrate`]). A way is chosen by trying it, never by kernel version. Everything is
//! attached through links, so it is gone when the process is, however it ends.

pub mod attach;
pub mod calibrate;
pub mod hooks;
mod maps;
pub mod memory;
mod object;
pub mod rules;
pub mod totals;

pub use attach::{AttachError, Probes, program_names};
pub use hooks::{Attachment, HOOKS, HookState};
pub use maps::{Awaited, Tree};
pub use totals::Totals;
