//! The bytes that the walk over open files wrote: connections that hang already.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use bytes::{Buf, Bytes};
use observer_ebpf::abi::HangingRecord;

use super::decode::decode_task;
use crate::model::Hanging;

/// Decodes all records; what several processes have open is one connection with several holders. A record that is cut is
/// left out.
pub fn decode(mut bytes: Bytes) -> Vec<Hanging> {
    let mut all: Vec<Hanging> = Vec::new();
    let mut by_cookie: HashMap<u64, usize> = HashMap::new();
    while bytes.len() >= size_of::<HangingRecord>() {
        let mut one = record(bytes.split_to(size_of::<HangingRecord>()));
        match by_cookie.get(&one.cookie).map(|place| &mut all[*place]) {
            Some(known) if known.holders.iter().all(|holder| holder.pid != one.holders[0].pid) => {
                known.holders.append(&mut one.holders);
            }
            Some(_) => {}
            None => {
                by_cookie.insert(one.cookie, all.len());
                all.push(one);
            }
        }
    }
    all
}

fn record(mut bytes: Bytes) -> Hanging {
    let boot_ns = bytes.get_u64_ne();
    let cookie = bytes.get_u64_ne();
    let inode = bytes.get_u64_ne();
    let task = decode_task(&mut bytes);
    let mut local = [0; 16];
    bytes.copy_to_slice(&mut local);
    let mut remote = [0; 16];
    bytes.copy_to_slice(&mut remote);
    let netns = bytes.get_u32_ne();
    let uid = bytes.get_u32_ne();
    let gid = bytes.get_u32_ne();
    let mark = bytes.get_u32_ne();
    let age = std::time::Duration::from_millis(u64::from(bytes.get_u32_ne()));
    let local_port = bytes.get_u16_ne();
    let remote_port = bytes.get_u16_ne();
    let v6 = bytes.get_u8() != 0;
    let sent_again = bytes.get_u8();
    let left = bytes.get_u8() != 0;
    let retries = bytes.get_u8();
    let linear = bytes.get_u8();
    let is_bound = bytes.get_u8() != 0;
    let address = |bytes: [u8; 16]| {
        if v6 { IpAddr::from(bytes).to_canonical() } else { IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]) }
    };
    Hanging {
        boot_ns,
        cookie,
        inode: (inode != 0).then_some(inode),
        uid,
        gid: (gid != u32::MAX).then_some(gid),
        mark,
        is_bound,
        netns,
        local: SocketAddr::new(address(local), local_port),
        remote: SocketAddr::new(address(remote), remote_port),
        age,
        sent_again,
        left: (sent_again > 0).then_some(left),
        schedule: (retries > 0).then_some((linear, retries)),
        holders: vec![task],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use observer_ebpf::abi::Task;
    use std::mem::offset_of;

    fn bytes(pid: u32, cookie: u64) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<HangingRecord>()];
        let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        put(offset_of!(HangingRecord, cookie), &cookie.to_ne_bytes());
        put(offset_of!(HangingRecord, inode), &9u64.to_ne_bytes());
        put(offset_of!(HangingRecord, task) + offset_of!(Task, pid), &pid.to_ne_bytes());
        put(offset_of!(HangingRecord, local), &[10, 0, 0, 1]);
        put(offset_of!(HangingRecord, remote), &[203, 0, 113, 10]);
        put(offset_of!(HangingRecord, netns), &5u32.to_ne_bytes());
        put(offset_of!(HangingRecord, uid), &6u32.to_ne_bytes());
        put(offset_of!(HangingRecord, age_ms), &41_000u32.to_ne_bytes());
        put(offset_of!(HangingRecord, local_port), &4000u16.to_ne_bytes());
        put(offset_of!(HangingRecord, remote_port), &443u16.to_ne_bytes());
        put(offset_of!(HangingRecord, sent_again), &[3]);
        put(offset_of!(HangingRecord, left), &[1]);
        put(offset_of!(HangingRecord, retries), &[6]);
        put(offset_of!(HangingRecord, linear), &[4]);
        bytes
    }

    #[test]
    fn every_field_is_read_from_its_own_place_and_holders_are_put_together() {
        let mut all = bytes(7, 1);
        all.extend(bytes(8, 1));
        all.extend(bytes(7, 1));
        all.extend(bytes(7, 2));
        all.extend([0; 9]);
        let all = decode(Bytes::from(all));
        let pids: Vec<Vec<u32>> = all.iter().map(|one| one.holders.iter().map(|holder| holder.pid).collect()).collect();
        assert_eq!(pids, [vec![7, 8], vec![7]]);
        let one = &all[0];
        assert_eq!(
            (one.local.to_string(), one.remote.to_string()),
            ("10.0.0.1:4000".into(), "203.0.113.10:443".into())
        );
        assert_eq!((one.inode, one.netns, one.uid, one.age.as_secs()), (Some(9), 5, 6, 41));
        assert_eq!((one.sent_again, one.left, one.schedule), (3, Some(true), Some((4, 6))));
    }
}
