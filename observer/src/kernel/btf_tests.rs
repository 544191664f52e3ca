//! A small BTF file made by hand, hostile input, and the running kernel where it has BTF.

use super::*;
use proptest::prelude::*;

/// Builds BTF of: int; struct inner { int a; int b:3; }; struct outer { union { struct inner; int c; }; int d[3]; };
/// enum reason { A, B = 7 }; typedef btf_trace_ev = pointer to void (*)(void *, int, enum reason).
fn sample() -> Vec<u8> {
    let mut strings = vec![0u8];
    let mut name = |text: &str| {
        let at = strings.len() as u32;
        strings.extend(text.as_bytes());
        strings.push(0);
        at
    };
    let words: Vec<u32> = vec![
        name("int"),
        1 << 24,
        4,
        32, // 1
        name("inner"),
        1 << 31 | 4 << 24 | 2,
        8,
        name("a"),
        1,
        0,
        name("b"),
        1,
        3 << 24 | 32, // 2
        0,
        5 << 24 | 2,
        8,
        0,
        2,
        0,
        name("c"),
        1,
        0, // 3
        0,
        3 << 24,
        0,
        1,
        1,
        3, // 4: int[3]
        name("outer"),
        4 << 24 | 2,
        20,
        0,
        3,
        0,
        name("d"),
        4,
        64, // 5
        name("reason"),
        6 << 24 | 2,
        4,
        name("A"),
        0,
        name("B"),
        7, // 6
        0,
        13 << 24 | 3,
        0,
        0,
        0,
        0,
        1,
        0,
        6, // 7
        0,
        2 << 24,
        7, // 8
        name("btf_trace_ev"),
        8 << 24,
        8, // 9
    ];
    file(&words, &strings)
}

fn file(words: &[u32], strings: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(MAGIC.to_ne_bytes());
    bytes.extend([1, 0]);
    let types = words.len() as u32 * 4;
    for word in [24, 0, types, types, strings.len() as u32] {
        bytes.extend(u32::to_ne_bytes(word));
    }
    words.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
    bytes.extend(strings);
    bytes
}

/// A module's numbers go on where the kernel's end: struct first { struct inner c; struct second *p; }; struct second { }.
#[test]
fn a_modules_types_stand_behind_the_kernels() {
    let base = sample();
    let mut btf = Btf::parse(&base).unwrap();
    let (types, strings) = (btf.len() as u32, btf.strings[0].len() as u32);
    let c = btf.find("c", |_| true);
    assert_eq!(c, None, "a member is no type");
    let name_of_c = memchr::memmem::find(&base[base.len() - strings as usize..], b"\0c\0").unwrap() as u32 + 1;
    let (first, second, p) = (strings, strings + 6, strings + 13);
    let words = [
        first,
        4 << 24 | 2,
        16,
        name_of_c,
        2,
        0,
        p,
        types + 1,
        64, // the first new type
        0,
        2 << 24,
        types + 2, // a pointer
        second,
        4 << 24,
        0,
    ];
    btf.append(&file(&words, b"first\0second\0p\0")).unwrap();
    assert_eq!(btf.member("first", "c.b"), Some(Member { bit_offset: 32, bits: 3 }));
    assert_eq!(btf.member("first", "p"), Some(Member { bit_offset: 64, bits: 64 }));
    assert!(btf.has_struct("second") && btf.has_struct("outer"));
}

#[test]
fn members_are_found_through_anonymous_unions() {
    let btf = Btf::parse(&sample()).unwrap();
    assert_eq!(btf.member("outer", "a"), Some(Member { bit_offset: 0, bits: 32 }));
    assert_eq!(btf.member("outer", "b"), Some(Member { bit_offset: 32, bits: 3 }));
    assert_eq!(btf.member("outer", "d"), Some(Member { bit_offset: 64, bits: 96 }));
    assert_eq!(btf.member("outer", "e"), None);
    assert_eq!(btf.member("nothing", "a"), None);
}

#[test]
fn enums_and_tracepoint_arguments() {
    let btf = Btf::parse(&sample()).unwrap();
    assert_eq!(btf.enum_value("reason", "B"), Some(7));
    assert_eq!(btf.enum_value("reason", "C"), None);
    assert_eq!(btf.tracepoint_enum_argument("ev", "reason"), Some(Some(1)));
    assert_eq!(btf.tracepoint_enum_argument("ev", "other"), Some(None));
    assert_eq!(btf.tracepoint_enum_argument("none", "reason"), None);
}

#[test]
fn the_running_kernel_is_understood() {
    let Ok(btf) = Btf::of_kernel() else { return };
    assert_eq!(btf.member("sk_buff", "len").map(|member| member.bits), Some(32));
    assert!(btf.tracepoint_enum_argument("kfree_skb", "skb_drop_reason").is_some());
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(flips in prop::collection::vec((0..400usize, any::<u8>()), 0..24), cut in 0..400usize) {
        let mut bytes = sample();
        for (at, value) in flips {
            let length = bytes.len();
            bytes[at % length] = value;
        }
        bytes.truncate(cut.max(24));
        if let Ok(btf) = Btf::parse(&bytes) {
            let _ = btf.member("outer", "a.b");
            let _ = btf.enum_values("reason");
            let _ = btf.tracepoint_enum_argument("ev", "reason");
        }
    }
}
