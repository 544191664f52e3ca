//! firewalld's files, and how it is started over copies of them.

use super::{PANIC_ON, recognise::TABLES};
use crate::firewall::front_end::{Needs, Step};

/// Where policies, zones and services are kept; those of the first folder hide those of the second.
pub(super) const FOLDERS: [&str; 2] = ["/etc/firewalld", "/usr/lib/firewalld"];
/// Direct rules.
pub(super) const DIRECT: &str = "/etc/firewalld/direct.xml";

/// Settings of the copy's message bus: everybody in the copy may do everything.
const BUS: &str = "/run/dbus/bus.conf";
const BUS_SOCKET: &str = "/run/dbus/system_bus_socket";
const BUS_SETTINGS: &str = r#"<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>
"#;

pub(super) const NEEDS: Needs = Needs {
    folders: &["/etc/firewalld"],
    programs: &["firewalld"],
    environment: &[("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket")],
    ..Needs::NOTHING
};

/// Starts it, behind a message bus of the copy's own.
pub(super) fn start(is_panic: bool) -> Vec<Step> {
    let mut steps = vec![
        Step::Write { path: BUS, text: BUS_SETTINGS },
        Step::Start { program: "dbus-daemon", args: &["--nofork", "--nopidfile", "--config-file=/run/dbus/bus.conf"] },
        Step::AwaitPath { what: "its message bus", path: BUS_SOCKET },
    ];
    // One that starts does not know what an earlier one has made, and adds to it.
    for table in TABLES {
        let delete = |family| Step::Try(format!("nft delete table {family} {table}"));
        steps.extend(["inet", "ip", "ip6"].map(delete));
    }
    steps.push(Step::Start { program: "firewalld", args: &["--nofork", "--nopid"] });
    steps.push(Step::AwaitCommand { what: "firewalld", line: "firewall-cmd --state" });
    // It is in no file.
    if is_panic {
        steps.push(Step::Run(format!("firewall-cmd {PANIC_ON}")));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_of_the_bus_is_told_in_all_places() {
        assert!(BUS_SETTINGS.contains(BUS_SOCKET));
        assert!(NEEDS.environment.iter().all(|(_, address)| address.ends_with(BUS_SOCKET)));
        assert!(
            start(false)
                .iter()
                .any(|step| matches!(step, Step::Start { args, .. } if args.iter().any(|arg| arg.ends_with(BUS))))
        );
    }

    #[test]
    fn panic_mode_is_in_no_file() {
        let panics = |is_panic| start(is_panic).contains(&Step::Run("firewall-cmd --panic-on".to_owned()));
        assert!(panics(true) && !panics(false));
    }
}
