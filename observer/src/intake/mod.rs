//! From the ring to decoded records: reads ([`ring`]) and decodes ([`decode`]); every record ends up in a queue or in a
//! loss counter.

pub mod decode;
pub mod ring;
