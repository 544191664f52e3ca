//! The kernel's clocks, and how they relate.

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Turns times of `CLOCK_BOOTTIME` into wall-clock time. The distance of the clocks is kept until the wall clock is set,
/// so that the same moment is always told as the same time.
#[derive(Debug, Default)]
pub struct Clock {
    offset: Option<i128>,
}

/// Two readings of the clocks' distance differ by less; a clock that was set differs by more.
const JITTER_NS: u128 = 1_000_000;

impl Clock {
    /// Wall-clock time of a time of `CLOCK_BOOTTIME` in nanoseconds.
    pub fn wall(&mut self, boot_ns: u64) -> Timestamp {
        let now = nanoseconds(ClockId::Realtime) - nanoseconds(ClockId::Boottime);
        let offset = match self.offset {
            Some(offset) if offset.abs_diff(now) < JITTER_NS => offset,
            _ => *self.offset.insert(now),
        };
        Timestamp::from_nanosecond(offset + i128::from(boot_ns)).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

fn nanoseconds(id: ClockId) -> i128 {
    let time = clock_gettime(id);
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

/// Nanoseconds of `CLOCK_BOOTTIME` now.
pub fn boot_ns() -> u64 {
    u64::try_from(nanoseconds(ClockId::Boottime)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_becomes_wall_time_and_the_same_moment_the_same_time() {
        let mut clock = Clock::default();
        let boot = boot_ns();
        let wall = clock.wall(boot);
        assert!(wall.duration_since(Timestamp::now()).abs().as_secs_f64() < 1.0);
        assert_eq!(clock.wall(boot), wall);
    }
}
