//! Starts the helper, and starts it again when it has died.
//!
//! A process with threads cannot fork safely, and a process that has given up its privileges cannot give them back. So a small
//! process is kept that has one thread and does nothing but fork a helper when it is asked to. It ends when observer does, and
//! the helper ends with it.

use std::{
    ffi::CString,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::{
    sys::{
        prctl,
        signal::{SigHandler, Signal},
        socket::{MsgFlags, setsockopt, sockopt::ReceiveTimeout},
        time::{TimeVal, TimeValLike},
    },
    unistd::ForkResult,
};

use super::{
    channel::{self, receive, send},
    netns,
    protocol::{Message, decode_message, reply},
    server,
};
use crate::{
    confinement::reader,
    model::{HELPER, SPARE},
    sys,
};

/// This side's end of the process that starts helpers.
pub(super) struct Spare(OwnedFd);

impl Spare {
    /// Must be called before any thread is started. `may_connect`: helpers may begin real connections.
    pub(super) fn start(may_connect: bool) -> Result<Self> {
        let (ours, theirs) = channel::pair()?;
        match sys::fork_single_threaded().context("cannot start the helper process")? {
            ForkResult::Parent { .. } => {
                setsockopt(&ours, ReceiveTimeout, &TimeVal::seconds(PATIENCE)).context("cannot set a time limit")?;
                Ok(Self(ours))
            }
            ForkResult::Child => {
                drop(ours);
                // What the caller of observer had open is not this process's business, nor its children's.
                sys::close_all_but(&[theirs.as_fd()]);
                let status = i32::from(wait(theirs, may_connect).is_err());
                std::process::exit(status);
            }
        }
    }

    /// A new helper: this side's end of it, and its process id.
    pub(super) fn helper(&self) -> Result<(OwnedFd, u32)> {
        send(&self.0, b"start", &[])?;
        let (answer, descriptors) =
            receive(&self.0, MsgFlags::empty())?.context("the process that starts it is gone")?;
        let pid = postcard::from_bytes(&answer)?;
        Ok((descriptors.into_iter().next().context("it could not be started")?, pid))
    }
}

/// Gives up what no helper needs, then starts one whenever that is asked, until observer is gone.
fn wait(socket: OwnedFd, may_connect: bool) -> Result<()> {
    // The parent gives up the right to signal this process, so the closed socket shows its death: the next read finds it.
    // Until then the signal is quicker.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let _ = prctl::set_name(&CString::new(SPARE)?);
    // Ctrl-C and a service manager's stop reach the whole group; the parent still has questions then.
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        sys::set_signal_handler(signal, SigHandler::SigIgn)?;
    }
    // Helpers that have died are not waited for.
    sys::set_signal_handler(Signal::SIGCHLD, SigHandler::SigIgn)?;
    release_standard_streams()?;
    netns::keep_mounts_apart();
    server::confine()?;
    while receive(&socket, MsgFlags::empty())?.is_some() {
        let (theirs, own) = channel::pair()?;
        match sys::fork_single_threaded() {
            // The next time there may be room for one.
            Err(_) => send(&socket, b"0", &[])?,
            Ok(ForkResult::Parent { child }) => {
                drop(own);
                send(&socket, &postcard::to_stdvec(&child.as_raw())?, &[theirs])?;
            }
            Ok(ForkResult::Child) => {
                drop((theirs, socket));
                sys::set_signal_handler(Signal::SIGCHLD, SigHandler::SigDfl)?;
                let status = i32::from(serve(&own, may_connect).is_err());
                std::process::exit(status);
            }
        }
    }
    Ok(())
}

/// How long a new helper is waited for, in seconds.
const PATIENCE: i64 = 10;

/// The helper: answers until whoever asks is gone.
fn serve(socket: &OwnedFd, may_connect: bool) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let _ = prctl::set_name(&CString::new(HELPER)?);
    sys::share_memory();
    let mut server = server::Server::new(may_connect);
    reader::prepare();
    loop {
        // What is attached for a while is taken away in time, and what nobody has asked for yet is done when nobody asks.
        let due = [server.verdicts.expire(), server.answers.expire(), server.shared.replays.prepare()];
        let wait =
            due.into_iter().flatten().min().map_or(0, |wait| i64::try_from(wait.as_millis() + 1).unwrap_or(i64::MAX));
        // 0 is for ever.
        setsockopt(socket, ReceiveTimeout, &TimeVal::milliseconds(wait))?;
        let message = match receive(socket, MsgFlags::empty()) {
            Ok(Some((message, received))) => {
                server.received = received;
                message
            }
            Ok(None) => {
                crate::confinement::child::end_all();
                return Ok(());
            }
            Err(error) if error.downcast_ref() == Some(&nix::Error::EAGAIN) => continue,
            Err(error) => return Err(error),
        };
        let Message { id, share, request } = decode_message(&message)?;
        let answer = reply(id, &server.answer(&request, share));
        // Whoever asks has its own of each when they are sent.
        send(socket, &answer, &std::mem::take(&mut server.descriptors))?;
    }
}

/// A reader at the other end of a pipe must not wait for the helper.
fn release_standard_streams() -> Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    let Ok(null) = null else { return Ok(()) };
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}
