//! A reader for the kernel's own type information (BTF), as far as observer asks: member offsets, enum values, the
//! arguments of a tracepoint.
//!
//! It indexes where each type starts and looks names up on demand, so reading the 6 MB of a kernel takes milliseconds and
//! little memory. Sources: the kernel's `Documentation/bpf/btf.rst` and `include/uapi/linux/btf.h` (6.18). The crates for
//! this either keep member look-up private, cannot read a module's BTF, or carry a licence that a static program cannot.

use std::{ops::Range, path::Path};

use bytes::Buf;

/// Where the running kernel keeps its BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why a BTF file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Path that was tried.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// It is not BTF, or is cut short.
    #[error("not valid BTF: {0}")]
    Malformed(&'static str),
}

/// Kinds of `enum btf_kind` that are looked at.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
    pub(super) const MAX: u32 = 19;
}

const HEADER_BYTES: usize = 24;
const TYPE_BYTES: usize = 12;
const MAGIC: u16 = 0xeb9f;
/// Typedefs and qualifiers that are followed before giving up on a loop.
const MAX_CHAIN: usize = 32;

/// Where a member lies in its struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Offset from the start of the outermost struct, in bits.
    pub bit_offset: u32,
    /// Width in bits.
    pub bits: u32,
}

/// A parsed BTF file, and perhaps a module's behind it.
pub struct Btf {
    bytes: Vec<u8>,
    /// Start of each type record in `bytes`; index 0 is `void` and has none.
    types: Vec<u32>,
    /// The strings of the file, then the module's, whose offsets go on where the file's end.
    strings: Vec<Range<usize>>,
}

/// One type record's fixed part.
#[derive(Clone, Copy)]
struct Head {
    name: u32,
    kind: u32,
    vlen: usize,
    /// `kind_flag`: members carry bit sizes, enum values are signed.
    flag: bool,
    /// Size in bytes, or the type referred to.
    size_or_type: u32,
    /// Start of what follows in `bytes`.
    rest: usize,
}

impl Btf {
    /// Reads the running kernel's BTF.
    pub fn of_kernel() -> Result<Self, BtfError> {
        Self::read(Path::new(VMLINUX))
    }

    /// Reads a BTF file.
    pub fn read(path: &Path) -> Result<Self, BtfError> {
        let bytes =
            std::fs::read(path).map_err(|source| BtfError::Read { path: path.display().to_string(), source })?;
        Self::parse(&bytes)
    }

    /// Reads the running kernel's BTF with a module's; what is built into the kernel has none of its own.
    pub fn of_module(name: &str) -> Result<Self, BtfError> {
        let mut btf = Self::of_kernel()?;
        let path = format!("/sys/kernel/btf/{name}");
        match std::fs::read(&path) {
            Ok(bytes) => btf.append(&bytes)?,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(BtfError::Read { path, source }),
        }
        Ok(btf)
    }

    /// Indexes the bytes of a BTF file in this machine's byte order.
    pub fn parse(bytes: &[u8]) -> Result<Self, BtfError> {
        let mut btf = Self { bytes: Vec::new(), types: vec![0], strings: Vec::new() };
        btf.append(bytes)?;
        Ok(btf)
    }

    /// Takes in the bytes of a file; the numbers of its types and strings go on where those before end, as a module's do.
    fn append(&mut self, bytes: &[u8]) -> Result<(), BtfError> {
        let mut header = bytes.get(..HEADER_BYTES).ok_or(BtfError::Malformed("shorter than its header"))?;
        if header.get_u16_ne() != MAGIC {
            return Err(BtfError::Malformed("wrong magic number"));
        }
        header.advance(2);
        let length = header.get_u32_ne() as usize;
        let mut section = || (header.get_u32_ne() as usize, header.get_u32_ne() as usize);
        let (type_offset, type_length) = section();
        let (string_offset, string_length) = section();
        let before = self.bytes.len();
        let range = |offset: usize, size: usize| {
            let start = length.checked_add(offset)?;
            let end = start.checked_add(size)?;
            (end <= bytes.len()).then_some(before + start..before + end)
        };
        let type_range = range(type_offset, type_length).ok_or(BtfError::Malformed("types lie outside the file"))?;
        let strings = range(string_offset, string_length).ok_or(BtfError::Malformed("strings lie outside the file"))?;
        self.bytes.extend_from_slice(bytes);
        self.strings.push(strings);
        let mut at = type_range.start;
        while at < type_range.end {
            let head = self.head_at(at).ok_or(BtfError::Malformed("a type is cut short"))?;
            self.types.push(u32::try_from(at).map_err(|_| BtfError::Malformed("larger than 4 GiB"))?);
            at = head.rest + trailing_bytes(head).ok_or(BtfError::Malformed("a type of an unknown kind"))?;
        }
        Ok(())
    }

    /// Number of types, `void` included.
    pub fn len(&self) -> usize {
        self.types.len()
    }

    /// True when a struct of that name is described here.
    pub fn has_struct(&self, name: &str) -> bool {
        self.find(name, |kind| kind == kind::STRUCT).is_some()
    }

    /// Where `path` (dotted, through anonymous members too) lies in struct `name`.
    pub fn member(&self, name: &str, path: &str) -> Option<Member> {
        let mut id = self.find(name, |kind| kind == kind::STRUCT)?;
        let mut found = Member { bit_offset: 0, bits: 0 };
        for part in path.split('.') {
            let (member, type_id) = self.member_of(id, part)?;
            found = Member { bit_offset: found.bit_offset + member.bit_offset, bits: member.bits };
            id = type_id;
        }
        Some(found)
    }

    /// Size of a struct in bytes.
    pub fn struct_bytes(&self, name: &str) -> Option<u32> {
        self.head(self.find(name, |kind| kind == kind::STRUCT)?).map(|head| head.size_or_type)
    }

    /// Number of a struct's type.
    pub fn struct_id(&self, name: &str) -> Option<u32> {
        self.find(name, |kind| kind == kind::STRUCT)
    }

    /// Number of a function.
    pub fn function_id(&self, name: &str) -> Option<u32> {
        self.find(name, |kind| kind == kind::FUNC)
    }

    /// Whether the kernel has a function of that name.
    pub fn has_function(&self, name: &str) -> bool {
        self.find(name, |kind| kind == kind::FUNC).is_some()
    }

    /// Value of an enumerator.
    pub fn enum_value(&self, name: &str, enumerator: &str) -> Option<i64> {
        self.enum_values(name).into_iter().find(|(found, _)| found == enumerator).map(|(_, value)| value)
    }

    /// All enumerators of an enum with their values; empty when there is no such enum.
    pub fn enum_values(&self, name: &str) -> Vec<(String, i64)> {
        let Some(id) = self.find(name, |kind| kind == kind::ENUM || kind == kind::ENUM64) else { return Vec::new() };
        let Some(head) = self.head(id) else { return Vec::new() };
        let width = if head.kind == kind::ENUM { 8 } else { 12 };
        (0..head.vlen)
            .filter_map(|index| {
                let at = head.rest + index * width;
                let low = self.u32(at + 4)?;
                let value = match (width, head.flag) {
                    (8, true) => i64::from(low.cast_signed()),
                    (8, false) => i64::from(low),
                    _ => (u64::from(low) | u64::from(self.u32(at + 8)?) << 32).cast_signed(),
                };
                Some((self.string(self.u32(at)?).to_owned(), value))
            })
            .collect()
    }

    /// Position of the argument whose type is `enum NAME` among a tracepoint's arguments (0 is the first that the event
    /// itself names). `Some(None)`: the tracepoint exists without such an argument.
    pub fn tracepoint_enum_argument(&self, tracepoint: &str, name: &str) -> Option<Option<usize>> {
        let parameters = self.tracepoint_parameters(tracepoint)?;
        Some(parameters.iter().position(|id| {
            self.resolve(*id)
                .and_then(|id| self.head(id))
                .is_some_and(|head| head.kind == kind::ENUM && self.string(head.name) == name)
        }))
    }

    /// Type ids of a tracepoint's arguments. `btf_trace_NAME` is a typedef of a pointer to its prototype, whose first
    /// parameter is the private data.
    fn tracepoint_parameters(&self, tracepoint: &str) -> Option<Vec<u32>> {
        let typedef = self.find(&format!("btf_trace_{tracepoint}"), |kind| kind == kind::TYPEDEF)?;
        let pointer = self.head(self.head(typedef)?.size_or_type)?;
        let prototype = self.head(pointer.size_or_type)?;
        if pointer.kind != kind::PTR || prototype.kind != kind::FUNC_PROTO {
            return None;
        }
        (1..prototype.vlen).map(|index| self.u32(prototype.rest + index * 8 + 4)).collect()
    }

    fn member_of(&self, id: u32, name: &str) -> Option<(Member, u32)> {
        let head = self.head(self.resolve(id)?)?;
        if head.kind != kind::STRUCT && head.kind != kind::UNION {
            return None;
        }
        for index in 0..head.vlen {
            let at = head.rest + index * 12;
            let (name_offset, type_id, place) = (self.u32(at)?, self.u32(at + 4)?, self.u32(at + 8)?);
            let (bit_offset, bitfield) = if head.flag { (place & 0x00ff_ffff, place >> 24) } else { (place, 0) };
            let member_name = self.string(name_offset);
            if member_name == name {
                let bits = if bitfield != 0 { bitfield } else { self.bits(type_id)? };
                return Some((Member { bit_offset, bits }, type_id));
            }
            if member_name.is_empty()
                && let Some((inner, inner_type)) = self.member_of(type_id, name)
            {
                return Some((Member { bit_offset: bit_offset + inner.bit_offset, ..inner }, inner_type));
            }
        }
        None
    }

    fn bits(&self, id: u32) -> Option<u32> {
        let head = self.head(self.resolve(id)?)?;
        match head.kind {
            kind::PTR => Some(64),
            kind::ARRAY => self.bits(self.u32(head.rest)?)?.checked_mul(self.u32(head.rest + 8)?),
            kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 => head.size_or_type.checked_mul(8),
            _ => None,
        }
    }

    /// Follows typedefs and qualifiers to the type behind them.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_CHAIN {
            let head = self.head(id)?;
            match head.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = head.size_or_type;
                }
                _ => return Some(id),
            }
        }
        None
    }

    fn find(&self, name: &str, wanted: impl Fn(u32) -> bool) -> Option<u32> {
        let needle = [b"\0", name.as_bytes(), b"\0"].concat();
        // Strings are stored once each, so the name has one offset.
        let mut before = 0;
        let offset = self.strings.iter().find_map(|range| {
            let strings = &self.bytes[range.clone()];
            // A module's do not begin with an empty one.
            let found = if strings.starts_with(&needle[1..]) {
                Some(before)
            } else {
                memchr::memmem::find(strings, &needle).map(|at| before + at + 1)
            };
            before += range.len();
            found
        })?;
        let offset = u32::try_from(offset).ok()?;
        (1..u32::try_from(self.types.len()).ok()?)
            .find(|id| self.head(*id).is_some_and(|head| head.name == offset && wanted(head.kind)))
    }

    fn head(&self, id: u32) -> Option<Head> {
        let at = *self.types.get(id as usize)? as usize;
        if at == 0 { None } else { self.head_at(at) }
    }

    fn head_at(&self, at: usize) -> Option<Head> {
        let info = self.u32(at + 4)?;
        Some(Head {
            name: self.u32(at)?,
            kind: (info >> 24) & 0x1f,
            vlen: (info & 0xffff) as usize,
            flag: info >> 31 == 1,
            size_or_type: self.u32(at + 8)?,
            rest: at + TYPE_BYTES,
        })
    }

    fn u32(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn string(&self, offset: u32) -> &str {
        let mut offset = offset as usize;
        let mut rest: &[u8] = &[];
        for range in &self.strings {
            if offset < range.len() {
                rest = &self.bytes[range.start + offset..range.end];
                break;
            }
            offset -= range.len();
        }
        let end = memchr::memchr(0, rest).unwrap_or(0);
        std::str::from_utf8(&rest[..end]).unwrap_or_default()
    }
}

/// Bytes after the fixed part of a type; `None` for a kind that this reader does not know.
fn trailing_bytes(head: Head) -> Option<usize> {
    match head.kind {
        kind::INT | kind::VAR | kind::DECL_TAG => Some(4),
        kind::ARRAY => Some(12),
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => Some(12 * head.vlen),
        kind::ENUM | kind::FUNC_PROTO => Some(8 * head.vlen),
        1..=kind::MAX => Some(0),
        _ => None,
    }
}

#[cfg(test)]
#[path = "btf_tests.rs"]
mod tests;
