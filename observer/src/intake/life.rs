//! A process record, and the data behind it.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use observer_ebpf::abi::{FlowRecord, ProcessEvent, ProcessRecord, Task, process_flag};
use zerocopy::{FromBytes, try_transmute};

use super::decode::{DecodeError, decode_source, take, text};
use crate::model::{Arguments, Born, Flow, Image, Namespaces, Owner, ProcessChange, ProcessId, Reached};

/// Inode numbers of the initial pid and user namespace (`include/linux/proc_ns.h`).
const INITIAL_PID_NAMESPACE: u32 = 0xefff_fffc;
const INITIAL_USER_NAMESPACE: u32 = 0xefff_fffd;

/// Decodes one record with the data behind it.
pub fn decode(mut bytes: Bytes) -> Result<ProcessChange, DecodeError> {
    let length = bytes.len();
    let wrong_length = || DecodeError::Length(length);
    let record: ProcessRecord = take(&mut bytes).ok_or_else(wrong_length)?;
    let ProcessRecord { time_ns: boot_ns, task, .. } = record;
    let [path_bytes, name_bytes, args_bytes] =
        [record.path_bytes, record.name_bytes, record.args_bytes].map(usize::from);
    if bytes.len() != path_bytes + name_bytes + args_bytes {
        return Err(wrong_length());
    }
    let path = bytes.split_to(path_bytes);
    let name = bytes.split_to(name_bytes);
    let args = bytes;
    let event = try_transmute!(record.event).map_err(|_| DecodeError::Event(record.event))?;
    Ok(match event {
        ProcessEvent::Fork => ProcessChange::Fork(Box::new(born(&record))),
        ProcessEvent::Exec => ProcessChange::Exec(Box::new(born(&record)), image(&path, &name, &args, record.flags)),
        ProcessEvent::Exit => ProcessChange::Exit { id: id(&task), boot_ns },
        ProcessEvent::Flow => ProcessChange::Flow(flow(&record, &args).ok_or_else(wrong_length)?.0),
        ProcessEvent::Reached => ProcessChange::Reached(reached(&record, &args).ok_or_else(wrong_length)?),
        ProcessEvent::Cgroup => {
            ProcessChange::Cgroup { id: task.cgroup, path: text(&name).unwrap_or_else(|| "/".to_owned()) }
        }
    })
}

fn id(task: &Task) -> ProcessId {
    ProcessId::new(task.pid, task.start_ns)
}

fn born(record: &ProcessRecord) -> Born {
    let ProcessRecord { time_ns: boot_ns, task, .. } = *record;
    let foreign = |number: u32, initial: u32| if number == initial { 0 } else { number };
    let pid_namespace = foreign(record.pid_namespace, INITIAL_PID_NAMESPACE);
    let user_namespace = foreign(record.user_namespace, INITIAL_USER_NAMESPACE);
    Born {
        boot_ns,
        task,
        parent: (task.parent_pid != 0).then(|| ProcessId::new(task.parent_pid, record.parent_start_ns)),
        namespaces: Namespaces {
            pid: pid_namespace,
            inner_pid: if pid_namespace == 0 { 0 } else { record.inner_pid },
            user: user_namespace,
            user_owner: if user_namespace == 0 { 0 } else { record.ident },
        },
    }
}

fn reached(record: &ProcessRecord, bytes: &[u8]) -> Option<Box<Reached>> {
    let (flow, said) = flow(record, bytes)?;
    let owner = decode_source(said.source).map(|source| Owner {
        task: record.task,
        bound_ns: Some(flow.since_ns),
        source,
        shared: false,
    });
    Some(Box::new(Reached {
        boot_ns: record.time_ns,
        owner,
        uid: said.uid,
        gid: (record.ident != u32::MAX).then_some(record.ident),
        netns: flow.netns,
        protocol: flow.protocol,
        local: SocketAddr::new(flow.local?, flow.local_port),
        remote: SocketAddr::new(flow.remote?, flow.remote_port),
        is_given_up: said.closed != 0,
    }))
}

/// The flow, and what it was made of; nothing where that is not as long as it must be.
fn flow(record: &ProcessRecord, bytes: &[u8]) -> Option<(Flow, FlowRecord)> {
    let said = FlowRecord::read_from_bytes(bytes).ok()?;
    let v6 = said.v6 != 0;
    let address = |bytes: [u8; 16]| {
        let [a, b, c, d, ..] = bytes;
        // A socket of the other family that sends IPv4 has mapped addresses.
        let address = if v6 { IpAddr::from(bytes).to_canonical() } else { IpAddr::from([a, b, c, d]) };
        (!address.is_unspecified()).then_some(address)
    };
    let (local, remote) = (address(said.local), address(said.remote));
    let flow = Flow {
        process: id(&record.task),
        netns: said.netns,
        since_ns: said.since_ns,
        until_ns: (said.closed != 0).then_some(record.time_ns),
        protocol: said.protocol,
        v6: local.or(remote).map_or(v6, |address| address.is_ipv6()),
        local,
        remote,
        local_port: said.local_port,
        remote_port: said.remote_port,
    };
    Some((flow, said))
}

fn image(path: &Bytes, name: &Bytes, args: &Bytes, flags: u8) -> Image {
    let executable_cut = flags & process_flag::PATH_CUT != 0;
    // The walk found the components leaf first.
    let mut executable = String::new();
    let components: Vec<_> = path.split(|byte| *byte == 0).filter(|component| !component.is_empty()).collect();
    for component in components.iter().rev() {
        executable.push('/');
        executable.push_str(&String::from_utf8_lossy(component));
    }
    let arguments = Arguments::new(args);
    let name = text(name);
    // The kernel puts a script's name behind its interpreter; any other program was executed under a name that ends as
    // its file does, or by a link to it.
    let script = name.filter(|name| arguments.iter().skip(1).any(|arg| arg == *name));
    Image {
        executable: (!components.is_empty()).then_some(executable),
        executable_cut,
        script,
        args: arguments,
        args_cut: flags & process_flag::ARGS_CUT != 0,
        args_unread: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use observer_ebpf::abi::OwnerSource;
    use proptest::prelude::*;
    use zerocopy::{FromZeros, IntoBytes};

    fn record(event: ProcessEvent, flags: u8, parts: [&[u8]; 3]) -> Bytes {
        let [path_bytes, name_bytes, args_bytes] = parts.map(|part| u16::try_from(part.len()).unwrap());
        let record = ProcessRecord {
            time_ns: 7,
            task: Task { start_ns: 50_000_000, cgroup: 9, pid: 12, parent_pid: 5, ..Task::default() },
            parent_start_ns: 10_000_000,
            pid_namespace: 77,
            inner_pid: 3,
            user_namespace: INITIAL_USER_NAMESPACE,
            event: event as u8,
            flags,
            path_bytes,
            name_bytes,
            args_bytes,
            ident: u32::MAX,
        };
        Bytes::from([record.as_bytes(), &parts.concat()].concat())
    }

    #[test]
    fn every_field_is_told_as_what_it_is() {
        let life = decode(record(ProcessEvent::Exec, 0, [b"curl\0bin\0usr\0", b"/bin/curl\0", b"curl\0-s\0\0x\0"]));
        let Ok(ProcessChange::Exec(born, image)) = life else { panic!("{life:?}") };
        assert_eq!((born.boot_ns, born.task.pid, born.task.cgroup), (7, 12, 9));
        assert_eq!(born.parent, Some(ProcessId { pid: 5, start_ticks: 1 }));
        assert_eq!(born.namespaces, Namespaces { pid: 77, inner_pid: 3, user: 0, user_owner: 0 });
        assert_eq!(image.executable.as_deref(), Some("/usr/bin/curl"));
        assert_eq!(image.args.iter().collect::<Vec<_>>(), ["curl", "-s", "", "x"], "an empty argument is an argument");
        assert_eq!((image.script, image.executable_cut, image.args_cut), (None, false, false));
    }

    #[test]
    fn a_script_is_named_beside_its_interpreter() {
        let life =
            decode(record(ProcessEvent::Exec, 3, [b"dash\0bin\0", b"./install.sh\0", b"/bin/sh\0./install.sh\0"]));
        let Ok(ProcessChange::Exec(_, image)) = life else { panic!("{life:?}") };
        assert_eq!(image.script.as_deref(), Some("./install.sh"));
        assert!(image.executable_cut && image.args_cut);
    }

    #[test]
    fn an_end_and_a_cgroup() {
        let id = ProcessId { pid: 12, start_ticks: 5 };
        assert_eq!(decode(record(ProcessEvent::Exit, 0, [b"", b"", b""])), Ok(ProcessChange::Exit { id, boot_ns: 7 }));
        let life = decode(record(ProcessEvent::Cgroup, 0, [b"", b"/system.slice/x.service\0", b""]));
        assert_eq!(life, Ok(ProcessChange::Cgroup { id: 9, path: "/system.slice/x.service".to_owned() }));
    }

    #[test]
    fn a_flow_that_was_reached_has_an_owner_if_its_source_is_known() {
        let flow = |source| FlowRecord {
            since_ns: 6,
            local: [0xfe; 16],
            remote: [0xfd; 16],
            netns: 5,
            uid: 4,
            remote_port: 443,
            protocol: 6,
            v6: 1,
            closed: 1,
            source,
            ..FlowRecord::new_zeroed()
        };
        let of = |event, flow: FlowRecord| decode(record(event, 0, [b"", b"", flow.as_bytes()]));
        let Ok(ProcessChange::Flow(said)) = of(ProcessEvent::Flow, flow(0)) else { panic!("a flow") };
        assert_eq!((said.since_ns, said.until_ns, said.netns, said.v6), (6, Some(7), 5, true));
        assert_eq!((said.protocol, said.process), (6, ProcessId { pid: 12, start_ticks: 5 }));
        let Ok(ProcessChange::Reached(reached)) = of(ProcessEvent::Reached, flow(2)) else {
            panic!("what was reached")
        };
        let owner = reached.owner.unwrap();
        assert_eq!((owner.source, owner.task.pid, owner.bound_ns), (OwnerSource::Create, 12, Some(6)));
        assert_eq!((reached.uid, reached.gid, reached.remote.port()), (4, None, 443));
        let Ok(ProcessChange::Reached(reached)) = of(ProcessEvent::Reached, flow(9)) else {
            panic!("what was reached")
        };
        assert_eq!(reached.owner, None);
        let nowhere = FlowRecord { remote: [0; 16], ..flow(2) };
        assert!(matches!(of(ProcessEvent::Reached, nowhere), Err(DecodeError::Length(_))));
    }

    #[test]
    fn wrong_lengths_and_unknown_events_are_errors() {
        let length = size_of::<ProcessRecord>();
        assert_eq!(decode(Bytes::from(vec![0; length - 1])), Err(DecodeError::Length(length - 1)));
        assert_eq!(decode(Bytes::from(vec![0; length + 1])), Err(DecodeError::Length(length + 1)));
        assert_eq!(decode(Bytes::from(vec![0; length])), Err(DecodeError::Event(0)));
        let flow = [0; size_of::<FlowRecord>() - 1];
        let cut = decode(record(ProcessEvent::Flow, 0, [b"", b"", &flow]));
        assert_eq!(cut, Err(DecodeError::Length(length + flow.len())));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode(Bytes::from(bytes));
        }
    }
}
