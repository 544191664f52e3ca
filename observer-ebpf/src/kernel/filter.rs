//! Filters that need nothing but the key.

use core::{hint::black_box, mem::offset_of};

use observer_ebpf::{
    abi::{Direction, FILTER_VALUES, FilterNetwork, KernelFilter, flag},
    logic::packet::{ethertype, protocol},
};

use super::{
    asked::{listed, word},
    scratch::{self, get},
    tree,
};

/// True when the packet in the scratch space may be reported.
#[inline(always)]
pub fn passes() -> bool {
    word(offset_of!(KernelFilter, active)) == 0 || drop_filter() != 0
}

/// A function of its own to the verifier too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drop_filter() -> u64 {
    let Some(scratch) = scratch::packet() else { return 1 };
    // SAFETY: the scratch space is this CPU's.
    unsafe {
        let netns = word(offset_of!(KernelFilter, netns));
        if netns != 0 && get!(scratch.record.key.netns) != netns && get!(scratch.record.key.origin_netns) != netns {
            return 0;
        }
        let flags: u16 = get!(scratch.record.key.flags);
        // Where the sender is not certain the key has its socket, and user space decides.
        let certain = get!(scratch.record.key.owner_source) != 0
            && get!(scratch.record.key.cookie) == 0
            && get!(scratch.record.key.direction) == Direction::Local as u8;
        if certain && tree::is_outside(get!(scratch.record.key.owner_pid), get!(scratch.record.key.owner_start_ns)) {
            return 0;
        }
        let number: u8 = get!(scratch.record.key.protocol);
        let readable = flags & flag::UNREADABLE == 0;
        let protocols = word(offset_of!(KernelFilter, protocols));
        if protocols != 0 && !(readable && listed(offset_of!(KernelFilter, protocol), protocols, u32::from(number))) {
            return 0;
        }
        let ports = word(offset_of!(KernelFilter, ports));
        let port = u32::from(get!(scratch.record.key.sent.destination_port));
        let has_port = flags & flag::TRANSPORT != 0 && number != protocol::ICMP && number != protocol::ICMPV6;
        if ports != 0 && !(has_port && listed(offset_of!(KernelFilter, port), ports, port)) {
            return 0;
        }
        let networks = word(offset_of!(KernelFilter, networks));
        let kind: u16 = get!(scratch.record.key.ethertype);
        // Of a tagged frame the family is reported by user space.
        if networks == 0 || readable && kind != ethertype::IPV4 && kind != ethertype::IPV6 {
            return 1;
        }
        let v6 = u32::from(kind == ethertype::IPV6);
        let translated = flags & flag::TRANSLATED != 0;
        for index in 0..FILTER_VALUES as u32 {
            if index < networks
                && readable
                && (drop_network(index, v6, 0) != 0 || translated && drop_network(index, v6, 1) != 0)
            {
                return 1;
            }
        }
        0
    }
}

/// The destination, as it was sent or as it was translated, lies in the network with this number.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drop_network(index: u32, v6: u32, translated: u32) -> u64 {
    let Some(scratch) = scratch::packet() else { return 1 };
    // A mask tells the verifier the bound, once the compiler cannot see that it changes nothing.
    const _: () = assert!(FILTER_VALUES.is_power_of_two());
    let index = black_box(index as usize) & (FILTER_VALUES - 1);
    let at = offset_of!(KernelFilter, network) + index * size_of::<FilterNetwork>();
    // SAFETY: the scratch space is this CPU's.
    let address = unsafe {
        if translated != 0 {
            (&raw const (*scratch).record.key.translated.destination).cast::<u32>()
        } else {
            (&raw const (*scratch).record.key.sent.destination).cast::<u32>()
        }
    };
    let mut difference = word(at + offset_of!(FilterNetwork, v6)) ^ v6;
    for part in 0..4 {
        // SAFETY: an address is four words.
        let word_of_address = unsafe { address.add(part).read_volatile() };
        let wanted = word(at + offset_of!(FilterNetwork, address) + part * size_of::<u32>());
        let mask = word(at + offset_of!(FilterNetwork, mask) + part * size_of::<u32>());
        difference |= (word_of_address ^ wanted) & mask;
    }
    u64::from(difference == 0)
}
