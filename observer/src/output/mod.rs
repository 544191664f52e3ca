//! What a person or a program reads: [`terminal`], [`verdict`] and [`json`], over any writer. Everything that came from outside
//! is escaped here ([`escape`]) and nowhere else.

pub mod check;
pub mod conclusion;
pub mod doctor;
pub mod escape;
mod fix;
pub mod json;
pub mod live;
pub mod notice;
pub mod overview;
pub mod steps;
pub mod terminal;
pub mod verdict;

use std::io;

use crate::model::{Change, Event, Summary};

/// Where events go.
pub trait Output: Send {
    /// One event; false when it is not shown by itself (background).
    fn event(&mut self, event: &Event) -> io::Result<bool>;
    /// Rules were changed.
    fn change(&mut self, change: &Change) -> io::Result<()>;
    /// Told whenever nothing more is at hand: news of what was told may still come.
    fn waits(&mut self, _for_news: bool) {}
    /// Called when nothing more is at hand, and several times a second in a storm: tell what waited long enough, flush.
    /// True when something still waits; then it is called again soon.
    fn idle(&mut self) -> io::Result<bool>;
    /// The end.
    fn finish(&mut self, summary: &Summary) -> io::Result<()>;
}
