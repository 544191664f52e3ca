//! What every process may do, and no more: the main process once its probes are attached ([`process`]), the helper, and the
//! programs that read data which a stranger on the host can write ([`child`]).
//!
//! Rules for the programs: they are the host's own, found at fixed places in observer's own mount namespace ([`programs`]); they
//! see a root folder that is made for them ([`root`]), with the host's programs to read and private copies of the files that they
//! write; their system calls are filtered ([`syscalls`]); and they end at a deadline, or with the thread that started them.

pub mod child;
pub mod process;
pub mod programs;
pub mod reader;
pub mod root;
pub mod store;
pub mod syscalls;
