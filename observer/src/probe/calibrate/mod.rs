//! What cannot be known of a kernel beforehand is learnt from packets in a namespace of observer's own, and proven there.

pub mod learn;
pub mod proof;
pub mod selftest;
