//! The bytes of a process record.

use std::net::{IpAddr, SocketAddr};

use bytes::{Buf, Bytes};
use observer_ebpf::abi::{FlowRecord, ProcessEvent, ProcessRecord, Task, process_flag};

use super::decode::{DecodeError, decode_source, decode_task, text};
use crate::model::{Arguments, Born, Flow, Image, Life, Namespaces, Owner, ProcessId, Reached};

/// Inode numbers of the initial pid and user namespace (`include/linux/proc_ns.h`).
const INITIAL_PID_NAMESPACE: u32 = 0xefff_fffc;
const INITIAL_USER_NAMESPACE: u32 = 0xefff_fffd;

/// Decodes one record with the data behind it.
pub fn decode(mut bytes: Bytes) -> Result<Life, DecodeError> {
    let length = bytes.len();
    if length < size_of::<ProcessRecord>() {
        return Err(DecodeError::Length(length));
    }
    let boot_ns = bytes.get_u64_ne();
    let task = decode_task(&mut bytes);
    let parent_start_ns = bytes.get_u64_ne();
    let pid_namespace = bytes.get_u32_ne();
    let inner_pid = bytes.get_u32_ne();
    let user_namespace = bytes.get_u32_ne();
    let event = bytes.get_u8();
    let flags = bytes.get_u8();
    let path_bytes = usize::from(bytes.get_u16_ne());
    let name_bytes = usize::from(bytes.get_u16_ne());
    let args_bytes = usize::from(bytes.get_u16_ne());
    let gid = bytes.get_u32_ne();
    if bytes.len() != path_bytes + name_bytes + args_bytes {
        return Err(DecodeError::Length(length));
    }
    let path = bytes.split_to(path_bytes);
    let name = bytes.split_to(name_bytes);
    let args = bytes;

    let foreign = |number: u32, initial: u32| if number == initial { 0 } else { number };
    let pid_namespace = foreign(pid_namespace, INITIAL_PID_NAMESPACE);
    let born = Box::new(Born {
        boot_ns,
        task,
        parent: (task.parent_pid != 0).then(|| ProcessId::new(task.parent_pid, parent_start_ns)),
        namespaces: Namespaces {
            pid: pid_namespace,
            inner_pid: if pid_namespace == 0 { 0 } else { inner_pid },
            user: foreign(user_namespace, INITIAL_USER_NAMESPACE),
        },
    });
    let is = |wanted: ProcessEvent| event == wanted as u8;
    if is(ProcessEvent::Fork) {
        Ok(Life::Fork(born))
    } else if is(ProcessEvent::Exec) {
        Ok(Life::Exec(born, image(&path, &name, &args, flags)))
    } else if is(ProcessEvent::Exit) {
        Ok(Life::Exit { id: ProcessId::new(task.pid, task.start_ns), boot_ns })
    } else if is(ProcessEvent::Flow) {
        flow(ProcessId::new(task.pid, task.start_ns), boot_ns, args)
            .map(|said| Life::Flow(said.flow))
            .ok_or(DecodeError::Length(length))
    } else if is(ProcessEvent::Reached) {
        reached(task, gid, boot_ns, args).map(Life::Reached).ok_or(DecodeError::Length(length))
    } else if is(ProcessEvent::Cgroup) {
        Ok(Life::Cgroup { id: task.cgroup, path: text(&name).unwrap_or_else(|| "/".to_owned()) })
    } else {
        Err(DecodeError::Event(event))
    }
}

/// A flow, and what is said beside it of one that was reached.
struct Said {
    flow: Flow,
    uid: u32,
    source: u8,
}

fn reached(task: Task, gid: u32, boot_ns: u64, bytes: Bytes) -> Option<Box<Reached>> {
    let Said { flow, uid, source } = flow(ProcessId::new(task.pid, task.start_ns), boot_ns, bytes)?;
    let owner = decode_source(u32::from(source)).map(|source| Owner {
        task,
        bound_ns: Some(flow.since_ns),
        source,
        shared: false,
    });
    Some(Box::new(Reached {
        boot_ns,
        owner,
        uid,
        gid: (gid != u32::MAX).then_some(gid),
        netns: flow.netns,
        protocol: flow.protocol,
        local: SocketAddr::new(flow.local?, flow.local_port),
        remote: SocketAddr::new(flow.remote?, flow.remote_port),
    }))
}

fn flow(process: ProcessId, boot_ns: u64, mut bytes: Bytes) -> Option<Said> {
    if bytes.len() != size_of::<FlowRecord>() {
        return None;
    }
    let since_ns = bytes.get_u64_ne();
    let (mut local, mut remote) = ([0; 16], [0; 16]);
    bytes.copy_to_slice(&mut local);
    bytes.copy_to_slice(&mut remote);
    let netns = bytes.get_u32_ne();
    let uid = bytes.get_u32_ne();
    let local_port = bytes.get_u16_ne();
    let remote_port = bytes.get_u16_ne();
    let protocol = bytes.get_u8();
    let v6 = bytes.get_u8() != 0;
    let until_ns = (bytes.get_u8() != 0).then_some(boot_ns);
    let source = bytes.get_u8();
    let address = |bytes: [u8; 16]| {
        let address = if v6 { IpAddr::from(bytes) } else { IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]) };
        // A socket of the other family that sends IPv4 has mapped addresses.
        let address = address.to_canonical();
        (!address.is_unspecified()).then_some(address)
    };
    let (local, remote) = (address(local), address(remote));
    let v6 = local.or(remote).map_or(v6, |address| address.is_ipv6());
    let flow = Flow { process, netns, since_ns, until_ns, protocol, v6, local, remote, local_port, remote_port };
    Some(Said { flow, uid, source })
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::mem::offset_of;

    fn record(event: ProcessEvent, flags: u8, parts: [&[u8]; 3]) -> Bytes {
        let mut bytes = vec![0; size_of::<ProcessRecord>()];
        let mut set = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        let task = offset_of!(ProcessRecord, task);
        set(offset_of!(ProcessRecord, time_ns), &7u64.to_ne_bytes());
        set(task + offset_of!(Task, start_ns), &50_000_000u64.to_ne_bytes());
        set(task + offset_of!(Task, cgroup), &9u64.to_ne_bytes());
        set(task + offset_of!(Task, pid), &12u32.to_ne_bytes());
        set(task + offset_of!(Task, parent_pid), &5u32.to_ne_bytes());
        set(offset_of!(ProcessRecord, parent_start_ns), &10_000_000u64.to_ne_bytes());
        set(offset_of!(ProcessRecord, pid_namespace), &77u32.to_ne_bytes());
        set(offset_of!(ProcessRecord, inner_pid), &3u32.to_ne_bytes());
        set(offset_of!(ProcessRecord, user_namespace), &INITIAL_USER_NAMESPACE.to_ne_bytes());
        set(offset_of!(ProcessRecord, event), &[event as u8, flags]);
        for (offset, part) in [
            (offset_of!(ProcessRecord, path_bytes), parts[0]),
            (offset_of!(ProcessRecord, name_bytes), parts[1]),
            (offset_of!(ProcessRecord, args_bytes), parts[2]),
        ] {
            set(offset, &u16::try_from(part.len()).unwrap().to_ne_bytes());
        }
        bytes.extend(parts.concat());
        Bytes::from(bytes)
    }

    #[test]
    fn every_field_is_read_from_its_own_place() {
        let life = decode(record(ProcessEvent::Exec, 0, [b"curl\0bin\0usr\0", b"/bin/curl\0", b"curl\0-s\0\0x\0"]));
        let Ok(Life::Exec(born, image)) = life else { panic!("{life:?}") };
        assert_eq!((born.boot_ns, born.task.pid, born.task.cgroup), (7, 12, 9));
        assert_eq!(born.parent, Some(ProcessId { pid: 5, start_ticks: 1 }));
        assert_eq!(born.namespaces, Namespaces { pid: 77, inner_pid: 3, user: 0 });
        assert_eq!(image.executable.as_deref(), Some("/usr/bin/curl"));
        assert_eq!(image.args.iter().collect::<Vec<_>>(), ["curl", "-s", "", "x"], "an empty argument is an argument");
        assert_eq!((image.script, image.executable_cut, image.args_cut), (None, false, false));
    }

    #[test]
    fn a_script_is_named_beside_its_interpreter() {
        let life =
            decode(record(ProcessEvent::Exec, 3, [b"dash\0bin\0", b"./install.sh\0", b"/bin/sh\0./install.sh\0"]));
        let Ok(Life::Exec(_, image)) = life else { panic!("{life:?}") };
        assert_eq!(image.script.as_deref(), Some("./install.sh"));
        assert!(image.executable_cut && image.args_cut);
    }

    #[test]
    fn an_end_and_a_cgroup() {
        let id = ProcessId { pid: 12, start_ticks: 5 };
        assert_eq!(decode(record(ProcessEvent::Exit, 0, [b"", b"", b""])), Ok(Life::Exit { id, boot_ns: 7 }));
        let life = decode(record(ProcessEvent::Cgroup, 0, [b"", b"/system.slice/x.service\0", b""]));
        assert_eq!(life, Ok(Life::Cgroup { id: 9, path: "/system.slice/x.service".to_owned() }));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode(Bytes::from(bytes));
        }
    }
}
