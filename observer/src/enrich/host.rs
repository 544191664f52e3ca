//! This host: name, machine id, boot, and the relation of its clocks.

use std::fs;

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use uuid::Uuid;

use crate::model::{Agent, Host, HostBoot, ProcessId};

/// Facts that do not change while observer runs.
#[derive(Clone, Debug)]
pub struct Identity {
    /// `agent`
    pub agent: Agent,
    /// `host`
    pub host: Host,
    /// This program's own executable.
    pub(super) executable: Option<String>,
    /// Space of names for ids that hold for this boot.
    boot: Uuid,
}

impl Identity {
    /// Reads the host's files; what cannot be read stays unknown.
    pub fn read() -> Self {
        let machine = word("/etc/machine-id").or_else(|| word("/var/lib/dbus/machine-id"));
        let boot = word("/proc/sys/kernel/random/boot_id");
        let agent_id =
            machine.as_ref().map(|id| Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("observer:{id}").as_bytes()));
        Self {
            agent: Agent { r#type: "observer", version: env!("CARGO_PKG_VERSION"), id: agent_id },
            boot: boot.as_deref().and_then(|id| id.parse().ok()).unwrap_or(Uuid::NAMESPACE_OID),
            executable: fs::read_link("/proc/self/exe").ok().map(|path| path.to_string_lossy().into_owned()),
            host: Host { name: word("/proc/sys/kernel/hostname"), id: machine, boot: boot.map(|id| HostBoot { id }) },
        }
    }

    /// Name space for the ids of one run's events. Made of what is unique, not of chance: an empty root file system has
    /// no source of it.
    pub fn run_id(&self) -> Uuid {
        Uuid::new_v5(&self.boot, format!("run:{}:{}", std::process::id(), boot_ns()).as_bytes())
    }

    /// Id of a process that survives pid reuse.
    pub fn process_id(&self, id: ProcessId) -> Uuid {
        Uuid::new_v5(&self.boot, format!("{}:{}", id.pid, id.start_ticks).as_bytes())
    }
}

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

fn word(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let word = text.trim();
    (!word.is_empty()).then(|| word.to_owned())
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

    #[test]
    fn another_start_is_another_process() {
        let identity = Identity::read();
        let id = |start_ticks| identity.process_id(ProcessId { pid: 1, start_ticks });
        assert_eq!(id(2), id(2));
        assert_ne!(id(2), id(3));
    }
}
