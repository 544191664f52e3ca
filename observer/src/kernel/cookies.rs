//! The cookie of a network namespace: a number that the kernel never uses twice, other than the namespace's inode number.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    sync::OnceLock,
};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData, MapType};

use crate::sys::socket_option;

/// By a socket's cookie, where the eBPF side is asked.
static TOLD: OnceLock<HashMap<MapData, u64, u64>> = OnceLock::new();

/// From now on the eBPF side is asked, by this map of its, where the kernel does not tell cookies.
pub fn ask_ebpf_side(map: OwnedFd) -> Result<()> {
    let map = MapData::from_fd(map)?;
    // Of another kind the kernel would write more than there is room for.
    ensure!(map.info()?.map_type()? == MapType::LruHash, "the map is of another kind");
    let map = HashMap::try_from(Map::LruHashMap(map))?;
    TOLD.set(map).ok().context("the map was given already")
}

/// Cookie of this thread's network namespace: as the kernel says (since Linux 5.14), or the eBPF side.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let number = |option| {
        let mut bytes = [0; size_of::<u64>()];
        socket_option(socket.as_fd(), libc::SOL_SOCKET, option, &mut bytes).map(|_| u64::from_ne_bytes(bytes))
    };
    number(libc::SO_NETNS_COOKIE).or_else(|error| {
        let told = TOLD.get().ok_or(error)?;
        told.get(&number(libc::SO_COOKIE)?, 0).map_err(io::Error::other)
    })
}
