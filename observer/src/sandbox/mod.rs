//! A private network namespace with a copy of what is in force: packets go through it once more ([`copy`]), and commands are
//! tried in it ([`fix`]). Nothing of it touches the original.

pub mod copy;
pub mod fix;
