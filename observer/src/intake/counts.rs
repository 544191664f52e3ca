//! What the eBPF side counted, by key: read a generation at a time, once nobody counts in it any more.

use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{Array, MapData, MapError, PerCpuHashMap};
use observer_ebpf::abi::{Counted, DropKey};
use zerocopy::transmute;

use crate::sys::wait_for_running_programs;

/// Programs run for microseconds; where the kernel does not say when they have left, this long is waited.
const PATIENCE: Duration = Duration::from_millis(50);

type KeyBytes = [u8; size_of::<DropKey>()];
type Value = [u64; size_of::<Counted>() / size_of::<u64>()];

/// The maps of the even and of the odd generation, each with the one for coarser keys behind it.
pub type CountMaps = [[PerCpuHashMap<MapData, KeyBytes, Value>; 2]; 2];

/// The generation in which is counted.
pub struct Epoch {
    map: Array<MapData, u32>,
    now: u32,
}

impl Epoch {
    /// Of a program that was just loaded.
    pub fn new(map: Array<MapData, u32>) -> Self {
        Self { map, now: 0 }
    }

    /// Begins the next generation; returns the one that is over. Nobody counts in that one once [`settle`] has returned.
    pub fn advance(&mut self) -> Result<u32> {
        let over = self.now;
        self.map.set(0, over.wrapping_add(1), 0).context("cannot begin the next generation")?;
        self.now = over.wrapping_add(1);
        Ok(over)
    }
}

/// Waits until no program counts any more in a generation that is over. May take some milliseconds. False where the kernel
/// does not say so, and a time was waited that should be long enough.
pub fn settle() -> bool {
    let certain = wait_for_running_programs();
    if !certain {
        std::thread::sleep(PATIENCE);
    }
    certain
}

/// Packets by key, of two generations.
pub struct Counts {
    maps: CountMaps,
}

impl Counts {
    /// Of a program that was just loaded.
    pub fn new(maps: CountMaps) -> Self {
        Self { maps }
    }

    /// Reads and clears what was counted in a generation that is over, by the order of first packets; and the first error,
    /// if something could not be read. What cannot be cleared is not read either.
    pub fn sweep(&mut self, epoch: u32) -> (Vec<(DropKey, Counted)>, Option<anyhow::Error>) {
        let (mut swept, mut failed) = (Vec::new(), None);
        for map in &mut self.maps[(epoch & 1) as usize] {
            let keys: Vec<Result<KeyBytes, MapError>> = map.keys().collect();
            for key in keys {
                let read = key.and_then(|key| {
                    let values = map.get(&key, 0)?;
                    map.remove(&key)?;
                    Ok((transmute!(key), sum(values.iter())))
                });
                match read {
                    Ok(counted) => swept.push(counted),
                    Err(error) => {
                        failed.get_or_insert(anyhow::Error::new(error).context("cannot read a count"));
                    }
                }
            }
        }
        swept.sort_by_key(|(_, counted)| counted.first_ns);
        (swept, failed)
    }
}

fn sum<'a>(cpus: impl Iterator<Item = &'a Value>) -> Counted {
    let mut sum = Counted { first_ns: u64::MAX, ..Counted::default() };
    for counted in cpus.map(|value| -> Counted { transmute!(*value) }).filter(|counted| counted.packets > 0) {
        sum.packets += counted.packets;
        sum.bytes += counted.bytes;
        sum.first_ns = sum.first_ns.min(counted.first_ns);
        sum.last_ns = sum.last_ns.max(counted.last_ns);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_added_and_those_that_saw_nothing_left_out() {
        let cpus = [[2, 100, 5, 9], [0, 0, 0, 0], [1, 60, 3, 4]];
        assert_eq!(sum(cpus.iter()), Counted { packets: 3, bytes: 160, first_ns: 3, last_ns: 9 });
    }
}
