//! From the rings to decoded records: reads ([`ring`]) and decodes ([`decode`] drops, [`life`] processes); every packet
//! is in the counts ([`counts`]), whatever becomes of its record.

pub mod counts;
pub mod decode;
pub mod hanging;
pub mod life;
pub mod ring;
