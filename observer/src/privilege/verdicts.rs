//! Probes on the functions that give rules' verdicts: attached while something is being blocked, and for as long after that as
//! is asked for.

use std::{
    ffi::CStr,
    fs,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::sys::attach_kprobe;

/// Functions that give a verdict. Those of modules that are not loaded are passed over, and tried again.
const FUNCTIONS: [&CStr; 8] = [
    c"nft_immediate_eval",
    c"nft_reject_inet_eval",
    c"nft_lookup_eval",
    c"nft_target_eval_xt",
    c"nft_reject_ipv4_eval",
    c"nft_reject_ipv6_eval",
    c"nft_reject_netdev_eval",
    c"nft_reject_bridge_eval",
];
/// All that a proof's rules use.
const OF_PROOF: [&CStr; 2] = [c"nft_immediate_eval", c"nft_reject_inet_eval"];
/// Longer than this nobody needs them.
const MAX_TIME: Duration = Duration::from_secs(300);
/// Number of the kernel's source of kprobes, where it has one.
pub const KPROBES: &str = "/sys/bus/event_source/devices/kprobe/type";

/// The programs, and where they are attached.
#[derive(Default)]
pub(super) struct Verdicts {
    programs: Option<Arc<[OwnedFd; 2]>>,
    /// By the function's place above; beginning and return. Held for long only while they are being attached.
    attached: Arc<Mutex<[Option<[OwnedFd; 2]>; FUNCTIONS.len()]>>,
    until: Option<Instant>,
}

impl Verdicts {
    /// Takes the programs that run at the beginning and at the return.
    pub(super) fn take(&mut self, programs: Vec<OwnedFd>) -> Result<()> {
        let programs = <[OwnedFd; 2]>::try_from(programs).map_err(|_| anyhow::anyhow!("not two programs"))?;
        self.programs = Some(Arc::new(programs));
        Ok(())
    }

    /// Attaches them for so long: to what a proof needs, and waits for that, or in the background to everything.
    ///
    /// Without `maps` no verdict comes out of one, and the function that looks things up is left alone: it runs for every set.
    pub(super) fn arm(&mut self, time: Duration, is_proof: bool, maps: bool) -> Result<()> {
        self.until = Some(Instant::now() + time.min(MAX_TIME));
        if time.is_zero() {
            return Ok(());
        }
        let programs = self.programs.clone().context("the programs are not there")?;
        let kind = fs::read_to_string(KPROBES).context("this kernel has no kprobes")?;
        let kind: u32 = kind.trim().parse().context("this kernel's kprobes have no number")?;
        if is_proof {
            return attach(
                &programs,
                kind,
                &mut *self.attached.lock().unwrap_or_else(PoisonError::into_inner),
                &OF_PROOF,
            );
        }
        let wanted: Vec<&CStr> =
            FUNCTIONS.into_iter().filter(|function| maps || *function != c"nft_lookup_eval").collect();
        let attached = Arc::clone(&self.attached);
        thread::spawn(move || {
            if let Ok(mut attached) = attached.try_lock()
                && let Err(error) = attach(&programs, kind, &mut *attached, &wanted)
            {
                log::warn!("{error:#}");
            }
        });
        Ok(())
    }

    /// Takes them away when nobody has asked for them of late; returns after how long that is to be done again, where it is.
    pub(super) fn expire(&mut self) -> Option<Duration> {
        /// They are being attached.
        const BUSY: Duration = Duration::from_millis(100);
        let left = self.until?.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Some(left);
        }
        let Ok(mut attached) = self.attached.try_lock() else { return Some(BUSY) };
        *attached = Default::default();
        self.until = None;
        None
    }
}

/// Attaches the programs to those of the functions that they are not attached to.
fn attach(programs: &[OwnedFd; 2], kind: u32, attached: &mut [Option<[OwnedFd; 2]>], wanted: &[&CStr]) -> Result<()> {
    let [begin, end] = programs;
    let mut why = String::new();
    let missing = |(function, slot): &(&&CStr, &mut Option<_>)| wanted.contains(function) && slot.is_none();
    for (function, slot) in FUNCTIONS.iter().zip(&mut *attached).filter(missing) {
        // The return first: a beginning without one would be remembered for nothing.
        let both = attach_kprobe(end.as_fd(), kind, function, true)
            .and_then(|end| Ok([attach_kprobe(begin.as_fd(), kind, function, false)?, end]));
        match both {
            Ok(both) => *slot = Some(both),
            Err(error) => why = format!("{}: {error}", function.to_string_lossy()),
        }
    }
    ensure!(attached.iter().any(Option::is_some), "no function that gives verdicts can be probed: {why}");
    Ok(())
}
