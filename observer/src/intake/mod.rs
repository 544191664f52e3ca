//! From the rings to decoded records: reads ([`ring`]) and decodes ([`decode`] drops, [`life`] processes); every packet
//! is in the counts ([`counts`]), whatever becomes of its record. Changes of rules come from the kernel's own announcements
//! ([`commits`]).

pub mod commits;
pub mod counts;
pub mod decode;
pub mod hanging;
pub mod life;
pub mod ring;
