//! The BPF object, as it is given to the kernel.

use std::borrow::Cow;

use observer_ebpf::abi::CAST;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("OBSERVER_BPF_OBJECT"));

/// Its calls of [`CAST`] are calls of the kernel's function with that number: what a relocation would do, for what Rust has none.
pub(super) fn object(cast: Option<u32>) -> Cow<'static, [u8]> {
    /// `BPF_JMP | BPF_CALL`
    const CALL: u8 = 0x85;
    /// `BPF_PSEUDO_KFUNC_CALL`, as a source register.
    const OF_KERNEL: u8 = 2 << 4;
    let Some(function) = cast else { return Cow::Borrowed(OBJECT) };
    let mut object = OBJECT.to_vec();
    let placeholder = [&[CALL, 0, 0, 0][..], &CAST.to_ne_bytes()].concat();
    for instruction in object.chunks_exact_mut(8).filter(|instruction| **instruction == placeholder) {
        instruction[1] = OF_KERNEL;
        instruction[4..].copy_from_slice(&function.to_ne_bytes());
    }
    Cow::Owned(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn casts_are_calls_of_the_kernels_function() {
        let calls = |object: &[u8], source: u8, number: u32| {
            let call = [&[0x85, source, 0, 0][..], &number.to_ne_bytes()].concat();
            object.chunks_exact(8).filter(|instruction| *instruction == call).count()
        };
        let own = calls(&object(None), 0, CAST);
        assert!(own > 10, "{own} calls");
        let with = object(Some(12_345));
        assert_eq!((calls(&with, 0, CAST), calls(&with, 2 << 4, 12_345)), (0, own));
    }
}
