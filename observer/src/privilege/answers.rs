//! A probe where datagrams come in: attached while they are being blocked, so that it is heard when they are answered again.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::verdicts::KPROBES;
use crate::sys::attach_kprobe;

/// It gets every datagram for a socket, of both families.
const FUNCTION: &std::ffi::CStr = c"__udp_enqueue_schedule_skb";
/// Longer than this nobody needs it.
const MAX_TIME: Duration = Duration::from_secs(300);

/// The program, and where it is attached.
#[derive(Default)]
pub(super) struct Answers {
    program: Option<OwnedFd>,
    attached: Option<OwnedFd>,
    until: Option<Instant>,
}

impl Answers {
    /// Takes the program.
    pub(super) fn take(&mut self, programs: Vec<OwnedFd>) -> Result<()> {
        let [program] = <[OwnedFd; 1]>::try_from(programs).map_err(|_| anyhow::anyhow!("not one program"))?;
        self.program = Some(program);
        Ok(())
    }

    /// Attaches it for so long.
    pub(super) fn arm(&mut self, time: Duration) -> Result<()> {
        if self.attached.is_none() {
            let program = self.program.as_ref().context("the program is not there")?;
            let kind = fs::read_to_string(KPROBES).context("this kernel has no kprobes")?;
            let kind = kind.trim().parse().context("this kernel's kprobes have no number")?;
            let attached = attach_kprobe(program.as_fd(), kind, FUNCTION, false);
            self.attached = Some(attached.with_context(|| format!("{} cannot be probed", FUNCTION.to_string_lossy()))?);
        }
        self.until = Some(Instant::now() + time.min(MAX_TIME));
        Ok(())
    }

    /// Takes it away when nobody has asked for it of late; returns after how long that is to be done again, where it is.
    pub(super) fn expire(&mut self) -> Option<Duration> {
        let left = self.until?.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            return Some(left);
        }
        // The kernel waits until nobody runs it.
        let attached = self.attached.take();
        thread::spawn(move || drop(attached));
        self.until = None;
        None
    }
}
