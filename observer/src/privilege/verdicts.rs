//! Probes on the functions that give rules' verdicts: attached while something is being blocked, and for as long after that as
//! is asked for.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::sys::attach_kprobe;

/// Functions that give a verdict. Those of modules that are not loaded are passed over, and tried again.
const FUNCTIONS: [&std::ffi::CStr; 8] = [
    c"nft_immediate_eval",
    c"nft_lookup_eval",
    c"nft_target_eval_xt",
    c"nft_reject_inet_eval",
    c"nft_reject_ipv4_eval",
    c"nft_reject_ipv6_eval",
    c"nft_reject_netdev_eval",
    c"nft_reject_bridge_eval",
];
/// Number of the kernel's source of such events.
const KIND: &str = "/sys/bus/event_source/devices/kprobe/type";
/// The programs, and where they are attached.
#[derive(Default)]
pub(super) struct Verdicts {
    programs: Option<[OwnedFd; 2]>,
    /// By the function's place above.
    attached: [Option<[OwnedFd; 2]>; FUNCTIONS.len()],
    until: Option<Instant>,
}

impl Verdicts {
    /// Takes the programs that run at the beginning and at the return.
    pub(super) fn take(&mut self, programs: Vec<OwnedFd>) -> Result<()> {
        self.programs = Some(<[OwnedFd; 2]>::try_from(programs).map_err(|_| anyhow::anyhow!("not two programs"))?);
        Ok(())
    }

    /// Attaches them wherever they are not, and keeps them there for so long; returns to how many functions they are.
    pub(super) fn arm(&mut self, time: Duration) -> Result<usize> {
        if time.is_zero() {
            self.until = Some(Instant::now());
            return Ok(0);
        }
        let [begin, end] = self.programs.as_ref().context("the programs are not there")?;
        let kind = fs::read_to_string(KIND).context("this kernel has no kprobes")?;
        let kind: u32 = kind.trim().parse().context("this kernel's kprobes have no number")?;
        let mut why = None;
        for (function, attached) in FUNCTIONS.iter().zip(&mut self.attached) {
            if attached.is_none() {
                // The return first: a beginning without one would be remembered for nothing.
                let both = attach_kprobe(end.as_fd(), kind, function, true)
                    .and_then(|end| Ok([attach_kprobe(begin.as_fd(), kind, function, false)?, end]));
                match both {
                    Ok(both) => *attached = Some(both),
                    Err(error) => why = Some(format!("{}: {error}", function.to_string_lossy())),
                }
            }
        }
        let count = self.attached.iter().flatten().count();
        ensure!(count > 0, "no function can be probed: {}", why.unwrap_or_default());
        self.until = Some(Instant::now() + time);
        Ok(count)
    }

    /// Takes them away when nobody has asked for them of late; returns after how long that is to be done again, where it is.
    pub(super) fn expire(&mut self) -> Option<Duration> {
        let left = self.until?.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.attached = Default::default();
            self.until = None;
            return None;
        }
        Some(left)
    }
}
