//! How fast this machine is: what is waited for, and for how long, follows it.

use std::{
    hint::black_box,
    sync::OnceLock,
    time::{Duration, Instant},
};

/// What the loop takes on the machine on which the limits were chosen.
const REFERENCE: Duration = Duration::from_millis(REFERENCE_MS);
const REFERENCE_MS: u64 = 170;

/// How many times slower this machine is than that one; at least 1.
pub(crate) fn slowness() -> f64 {
    static SLOWNESS: OnceLock<f64> = OnceLock::new();
    *SLOWNESS.get_or_init(|| {
        let took = (0..3).map(|_| measure()).min().unwrap_or(REFERENCE);
        (took.as_secs_f64() / REFERENCE.as_secs_f64()).clamp(1.0, 10.0)
    })
}

/// A loop of arithmetic on one processor, as it is built for development.
fn measure() -> Duration {
    let began = Instant::now();
    let mut state = 1u64;
    for step in 0..10_000_000u64 {
        state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step));
    }
    black_box(state);
    began.elapsed()
}
