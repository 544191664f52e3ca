//! What takes long and can be skipped: a spinner on stderr, where that is a terminal, and Ctrl-C.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::{SigId, consts::SIGINT, flag, low_level};

use crate::sink::notice;

/// Exit status of a process that SIGINT ends, as a shell has it.
const INTERRUPTED: i32 = 130;
/// What takes no longer shows no spinner.
const SOON: Duration = Duration::from_millis(400);

/// Something that takes long. The first Ctrl-C skips it, the next one ends the program.
pub(super) struct Progress {
    bar: ProgressBar,
    words: &'static str,
    is_shown: bool,
    skipped: Arc<AtomicBool>,
    handler: Option<SigId>,
}

impl Progress {
    /// `words` say what is being done. Where nothing of it can be skipped the first Ctrl-C ends the program.
    pub(super) fn new(words: &'static str, can_skip: bool) -> io::Result<Self> {
        let skipped = Arc::new(AtomicBool::new(!can_skip));
        // In this order: what the first signal sets ends the program at the second one.
        flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&skipped))?;
        let handler = Some(flag::register(SIGINT, Arc::clone(&skipped))?);
        let target = if notice::is_quiet() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let style =
            ProgressStyle::with_template("{spinner} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = ProgressBar::with_draw_target(None, target).with_style(style);
        Ok(Self { bar, words, is_shown: false, skipped, handler })
    }

    /// It has taken so long; true when it was skipped, or cannot be.
    pub(super) fn goes_on(&mut self, elapsed: Duration) -> bool {
        if elapsed >= SOON {
            if !self.is_shown {
                self.bar.set_message(self.words);
                self.is_shown = true;
            }
            self.bar.tick();
        }
        self.skipped.load(Ordering::Acquire)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        // From now on Ctrl-C ends the program.
        self.skipped.store(true, Ordering::Release);
        self.handler.take().map(low_level::unregister);
    }
}
