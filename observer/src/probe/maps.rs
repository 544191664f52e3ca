//! The maps of attached programs, for whoever in user space reads or fills them.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use aya::{
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuHashMap, RingBuf},
    programs::KProbe,
};
use bytes::Bytes;
use observer_ebpf::abi::{AwaitedKey, AwaitedValue, DropKey, Member, map, program};
use zerocopy::transmute;

use super::{
    Probes,
    attach::{AVOID, COMPARE, RULES, is_avoided, names, one_line},
    rules::RuleMaps,
};

/// The counts of the even and of the odd generation, each with those by coarser keys behind it.
type CountMaps = [[PerCpuHashMap<MapData, [u8; size_of::<DropKey>()], [u64; 4]>; 2]; 2];

/// `BPF_NOEXIST` of `uapi/linux/bpf.h`.
const NO_EXIST: u64 = 1;

/// Which processes belong to the trees that are kept track of.
pub struct Tree(HashMap<MapData, u32, [u8; size_of::<Member>()]>);

impl Tree {
    /// Those that belong to one, and live.
    pub fn members(&self) -> Vec<u32> {
        let is_inside = |bytes: [u8; size_of::<Member>()]| {
            let member: Member = transmute!(bytes);
            member.inside != 0
        };
        self.0.iter().flatten().filter(|(_, member)| is_inside(*member)).map(|(pid, _)| pid).collect()
    }
}

/// The destinations of which the eBPF side tells when they are reached.
pub struct Awaited {
    keys: HashMap<MapData, [u8; size_of::<AwaitedKey>()], [u8; size_of::<AwaitedValue>()]>,
    any: Array<MapData, u32>,
    number: usize,
}

impl Awaited {
    /// Waits for one from now on, or not any more.
    pub fn set(&mut self, key: &AwaitedKey, is_awaited: bool) -> anyhow::Result<()> {
        let bytes: [u8; size_of::<AwaitedKey>()] = transmute!(*key);
        let before = self.number;
        if is_awaited {
            self.keys.insert(bytes, [0; size_of::<AwaitedValue>()], 0)?;
            self.number += 1;
        } else {
            self.keys.remove(&bytes)?;
            self.number = self.number.saturating_sub(1);
        }
        if (before == 0) != (self.number == 0) {
            self.any.set(0, u32::from(self.number > 0), 0)?;
        }
        Ok(())
    }
}

impl Probes {
    /// The destinations that are waited for; once.
    pub fn take_awaited(&mut self) -> anyhow::Result<Awaited> {
        let mut take =
            |name: &str| self.ebpf.take_map(name).with_context(|| format!("the map {name} was taken already"));
        let (keys, any) = (take(map::AWAITED)?, take(map::AWAITING)?);
        Ok(Awaited { keys: keys.try_into()?, any: any.try_into()?, number: 0 })
    }

    /// Says of a process that runs already whether it belongs to a tree that is asked for. What the eBPF side knows of its
    /// number since then stands.
    pub fn place_in_tree(&mut self, pid: u32, start_ticks: u64, inside: bool) -> anyhow::Result<()> {
        let map = self.ebpf.map_mut(map::TREE).with_context(|| format!("the BPF object has no map {}", map::TREE))?;
        let mut tree: HashMap<_, u32, [u8; size_of::<Member>()]> = map.try_into()?;
        let member: [u8; size_of::<Member>()] = transmute!(Member { start_ticks, inside: inside.into(), reserved: 0 });
        match tree.insert(pid, member, NO_EXIST) {
            Ok(()) | Err(MapError::SyscallError(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The trees; once, when all that run already are placed.
    pub fn take_tree(&mut self) -> anyhow::Result<Tree> {
        let map = self.ebpf.take_map(map::TREE).with_context(|| format!("the map {} was taken already", map::TREE))?;
        Ok(Tree(map.try_into()?))
    }

    /// Takes back what was said of a process that has ended meanwhile.
    pub fn take_out_of_tree(&mut self, pid: u32) -> anyhow::Result<()> {
        let map = self.ebpf.map_mut(map::TREE).with_context(|| format!("the BPF object has no map {}", map::TREE))?;
        let mut tree: HashMap<_, u32, [u8; size_of::<Member>()]> = map.try_into()?;
        // Gone already is as good.
        let _ = tree.remove(&pid);
        Ok(())
    }

    /// Records of connections that hung at start.
    pub fn take_hanging(&mut self) -> Bytes {
        std::mem::take(&mut self.hanging)
    }

    /// The ring of drop records; once.
    pub fn take_ring(&mut self) -> anyhow::Result<RingBuf<MapData>> {
        self.take(map::EVENTS)
    }

    /// The ring of process records; once.
    pub fn take_process_ring(&mut self) -> anyhow::Result<RingBuf<MapData>> {
        self.take(map::PROCESSES)
    }

    /// What is counted by key; once.
    pub fn take_counts(&mut self) -> anyhow::Result<CountMaps> {
        let mut one = |name: &str| -> anyhow::Result<_> {
            let map = self.ebpf.take_map(name).with_context(|| format!("the counts {name} were taken already"))?;
            Ok(map.try_into()?)
        };
        Ok([[one(map::KEYS[0])?, one(map::COARSE[0])?], [one(map::KEYS[1])?, one(map::COARSE[1])?]])
    }

    /// The generation in which is counted; once.
    pub fn take_epoch(&mut self) -> anyhow::Result<Array<MapData, u32>> {
        let map = self.ebpf.take_map(map::EPOCH).context("the generation was taken already")?;
        Ok(map.try_into()?)
    }

    /// Seeing rules live is not to be tried.
    pub fn avoids_rules() -> bool {
        is_avoided(RULES)
    }

    /// The map that says where the eBPF side finds rules; once.
    pub fn take_rules(&mut self) -> anyhow::Result<RuleMaps> {
        let avoided = is_avoided(RULES).then(|| format!("not tried, because {AVOID} names it"));
        let mut take =
            |name: &str| self.ebpf.take_map(name).with_context(|| format!("the map {name} was taken already"));
        let (config, proofs, distance) = (take(map::RULES)?, take(map::PROOFS)?, take(map::DISTANCE)?);
        let (config, proofs, distance) = (config.try_into()?, proofs.try_into()?, distance.try_into()?);
        let Map::LruHashMap(cookies) = take(map::NETNS_COOKIES)? else {
            anyhow::bail!("the map {} is of another kind", map::NETNS_COOKIES)
        };
        let cookies = cookies.fd().as_fd().try_clone_to_owned()?;
        let programs = self.verdict_programs().map_err(|error| one_line(&error));
        Ok(RuleMaps::new(config, proofs, distance, cookies, programs, avoided, names(COMPARE, "verdicts")))
    }

    /// Where the namespaces are named of which nothing is to be seen.
    pub fn own_namespaces(&self) -> anyhow::Result<OwnedFd> {
        let map = self.ebpf.map(map::OWN).with_context(|| format!("the BPF object has no map {}", map::OWN))?;
        let Map::HashMap(map) = map else { anyhow::bail!("the map {} is of another kind", map::OWN) };
        Ok(map.fd().as_fd().try_clone_to_owned()?)
    }

    /// The program that runs where a datagram has come in, loaded and attached to nothing.
    pub fn answer_program(&mut self) -> anyhow::Result<OwnedFd> {
        self.may_probe()?;
        let name = program::ANSWERED;
        let program = self.ebpf.program_mut(name).with_context(|| format!("the BPF object has no program `{name}`"))?;
        let program: &mut KProbe = program.try_into()?;
        program.load()?;
        program.fd()?.as_fd().try_clone_to_owned().context("cannot keep a program's descriptor")
    }

    /// The programs that run where a rule's verdict begins and ends, loaded and attached to nothing.
    fn verdict_programs(&mut self) -> anyhow::Result<[OwnedFd; 2]> {
        let [begin, end] = program::VERDICT.map(|name| {
            let program =
                self.ebpf.program_mut(name).with_context(|| format!("the BPF object has no program `{name}`"))?;
            let program: &mut KProbe = program.try_into()?;
            program.load()?;
            program.fd()?.as_fd().try_clone_to_owned().context("cannot keep a program's descriptor")
        });
        Ok([begin?, end?])
    }

    fn take(&mut self, name: &str) -> anyhow::Result<RingBuf<MapData>> {
        let ring = self.ebpf.take_map(name).with_context(|| format!("the ring {name} was taken already"))?;
        RingBuf::try_from(ring).context("the BPF object's ring is of another kind")
    }
}
