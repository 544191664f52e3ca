//! Decisions as pure functions: no kernel, no I/O, no allocation.

pub mod direction;
pub mod packet;
