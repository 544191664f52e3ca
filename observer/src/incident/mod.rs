//! Events of one cause, told as one story.

pub mod fold;

pub use fold::{Fold, Repeats, Told, who};
