//! What scenarios, the demo and the bench are made of: network namespaces with private files ([`namespace`]), two of them
//! joined ([`lab`]), the program under test ([`observer`]), traffic ([`traffic`]), BPF programs that block
//! ([`testbed`]); and what the running kernel can name ([`kernel`]).
//!
//! Nothing here touches the host: every rule, address and file belongs to a namespace that dies with its holder process,
//! and the holder dies with whoever made it.

pub mod kernel;
pub mod lab;
pub mod namespace;
pub mod observer;
pub mod record;
pub mod testbed;
pub mod traffic;

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

/// Longest wait for anything that should happen at once: 20 s, times what the environment variable `OBSERVER_SLOWNESS`
/// says of a machine that is emulated, and `OBSERVER_PATIENCE_FACTOR` of one that is slow.
pub fn patience() -> Duration {
    factor(Duration::from_secs(20))
}

/// A time on a fast machine, as it is on this one.
pub fn factor(time: Duration) -> Duration {
    let factor = std::env::var("OBSERVER_PATIENCE_FACTOR").ok().and_then(|factor| factor.parse().ok());
    time.mul_f64(factor.unwrap_or(1.0_f64).clamp(1.0, 10.0)) * slowness()
}

/// Programs that are started from now on are ended by SIGINT, whatever the caller does with it.
#[expect(unsafe_code, reason = "a signal's disposition; no handler of ours is run")]
pub fn listen_to_interrupts() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default disposition runs no code of ours.
    let _ = unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) };
}

/// How many times longer things take here than on a real machine: the environment variable `OBSERVER_SLOWNESS`, or 1.
pub fn slowness() -> u32 {
    std::env::var("OBSERVER_SLOWNESS").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1)
}

/// Of a table of rulesets one in so many is tried: the environment variable `OBSERVER_SAMPLE`, or all.
pub fn sample() -> usize {
    std::env::var("OBSERVER_SAMPLE").ok().and_then(|step| step.parse().ok()).unwrap_or(1).max(1)
}

/// Copies a program. By a process of its own: a child that another scenario starts meanwhile would inherit the open file, and what
/// is open for writing cannot be executed.
pub fn copy_program(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
    let status = Command::new("cp").arg(from.as_ref()).arg(to.as_ref()).status()?;
    ensure!(status.success(), "{} was not copied", from.as_ref().display());
    Ok(())
}

/// Waits until `ready` gives an answer, looking every few milliseconds.
pub fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + patience();
    loop {
        if let Some(answer) = ready()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("waited {} s in vain for {what}", patience().as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
