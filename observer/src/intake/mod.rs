//! From the rings to decoded records: reads ([`ring`]) and decodes ([`decode`] drops, [`life`] processes); every drop
//! record ends up in a queue or in a loss counter.

pub mod counts;
pub mod decode;
pub mod hanging;
pub mod life;
pub mod ring;
