//! Values as bytes, and nothing else: [`ecs`] for programs, [`text`] for a terminal, Markdown for tickets. Everything that came from outside
//! is escaped here ([`escape`](mod@escape)) and nowhere else.

pub mod check;
pub mod conclusion;
pub mod doctor;
pub(crate) mod ecs;
pub mod escape;
mod fix;
pub mod json;
mod markdown;
pub mod overview;
pub mod screen;
pub mod steps;
pub(crate) mod text;

pub use fix::remember_who_started;
