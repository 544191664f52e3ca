//! What the walk over open files wrote: connections that hang already.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use observer_ebpf::abi::HangingRecord;

use super::decode::take;
use crate::model::Hanging;

/// Decodes all records; what several processes have open is one connection with several holders. A record that is cut is
/// left out.
pub fn decode(mut bytes: Bytes) -> Vec<Hanging> {
    let mut all: Vec<Hanging> = Vec::new();
    let mut by_cookie: HashMap<u64, usize> = HashMap::new();
    while let Some(record) = take(&mut bytes) {
        let mut one = hanging(&record);
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

fn hanging(record: &HangingRecord) -> Hanging {
    let address = |bytes: [u8; 16]| {
        let [a, b, c, d, ..] = bytes;
        if record.v6 != 0 { IpAddr::from(bytes).to_canonical() } else { IpAddr::from([a, b, c, d]) }
    };
    Hanging {
        boot_ns: record.time_ns,
        cookie: record.cookie,
        inode: (record.inode != 0).then_some(record.inode),
        uid: record.uid,
        gid: (record.gid != u32::MAX).then_some(record.gid),
        mark: record.mark,
        is_bound: record.bound != 0,
        netns: record.netns,
        local: SocketAddr::new(address(record.local), record.local_port),
        remote: SocketAddr::new(address(record.remote), record.remote_port),
        age: Duration::from_millis(record.age_ms.into()),
        sent_again: record.sent_again,
        left: (record.sent_again > 0).then_some(record.left != 0),
        schedule: (record.retries > 0).then_some((record.linear, record.retries)),
        holders: vec![record.task],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use observer_ebpf::abi::Task;
    use zerocopy::{FromZeros, IntoBytes};

    fn record(pid: u32, cookie: u64) -> HangingRecord {
        let mut record = HangingRecord {
            cookie,
            inode: 9,
            task: Task { pid, ..Task::default() },
            netns: 5,
            uid: 6,
            age_ms: 41_000,
            local_port: 4000,
            remote_port: 443,
            sent_again: 3,
            left: 1,
            retries: 6,
            linear: 4,
            ..HangingRecord::new_zeroed()
        };
        record.local[..4].copy_from_slice(&[10, 0, 0, 1]);
        record.remote[..4].copy_from_slice(&[203, 0, 113, 10]);
        record
    }

    #[test]
    fn every_field_is_told_as_what_it_is_and_holders_are_put_together() {
        let records = [record(7, 1), record(8, 1), record(7, 1), record(7, 2)];
        let all = decode(Bytes::from([records.as_bytes(), &[0; 9]].concat()));
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
