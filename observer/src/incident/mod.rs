//! Events of one cause, told as one story.

pub mod fold;
pub mod top;

pub use fold::{Fold, Repeats, Told, who};
pub use top::Top;
