//! How long is waited, on a machine that is slower than any on which that was chosen.

use std::{sync::OnceLock, time::Duration};

use crate::developer;

/// Environment variable: so many times longer than otherwise.
const PATIENCE: &str = "OBSERVER_PATIENCE";

/// The limit here.
pub fn here(limit: Duration) -> Duration {
    limit * times()
}

/// So many times longer than on others.
pub fn times() -> u32 {
    static TIMES: OnceLock<u32> = OnceLock::new();
    let named = || developer::variable(PATIENCE)?.parse().ok();
    *TIMES.get_or_init(|| named().unwrap_or(1).clamp(1, 1000))
}
