//! This host: name, machine id, boot.

use std::fs;

use uuid::Uuid;

use crate::{
    kernel::clock::boot_ns,
    model::{Agent, Host, HostBoot, ProcessId, Reporter},
};

/// Facts that do not change while observer runs.
#[derive(Clone, Debug)]
pub struct Identity {
    /// What lines say of it.
    pub reporter: Reporter,
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
            boot: boot.as_deref().and_then(|id| id.parse().ok()).unwrap_or(Uuid::NAMESPACE_OID),
            executable: fs::read_link("/proc/self/exe").ok().map(|path| path.to_string_lossy().into_owned()),
            reporter: Reporter {
                agent: Agent {
                    r#type: "observer".to_owned(),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    id: agent_id,
                },
                host: Host {
                    name: word("/proc/sys/kernel/hostname"),
                    id: machine,
                    boot: boot.map(|id| HostBoot { id }),
                },
            },
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

fn word(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let word = text.trim();
    (!word.is_empty()).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_start_is_another_process() {
        let identity = Identity::read();
        let id = |start_ticks| identity.process_id(ProcessId { pid: 1, start_ticks });
        assert_eq!(id(2), id(2));
        assert_ne!(id(2), id(3));
    }
}
