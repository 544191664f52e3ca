//! Reads rulesets in a confined process: observer's own program, started again in the network namespace of the calling thread as
//! [`NAME`] with one question, whose answer it writes to its standard output.
//!
//! Rules are a stranger's: whoever is root in a network namespace of its own writes as many as it likes, of any shape. What reads
//! them takes no more memory or time than a [`Confined`] program may, and holds nothing of anybody else's.

use std::{ffi::OsStr, fmt, process::ExitCode, sync::OnceLock, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::{Serialize, de::DeserializeOwned};

use super::child::Confined;
use crate::patience;

/// What the process is called, and what its first argument is.
pub const NAME: &str = "observer-reader";
/// What it may use of a processor.
const LIMIT: Duration = Duration::from_secs(10);
/// Of an answer so many bytes are taken.
const MAX_BYTES: u64 = 96 << 20;
/// Exit status of a program that SIGKILL ended, as its first process tells it.
const KILLED: i32 = 137;

/// A question about the network namespace of whoever answers it, with what it takes beside, and its answer's type.
pub struct Question<A> {
    name: &'static str,
    /// Answers it, in the calling thread. What it takes is a number, such as a limit.
    here: fn(usize) -> Result<A>,
}

impl<A: Serialize + DeserializeOwned> Question<A> {
    /// `here` answers it in the calling thread.
    pub const fn new(name: &'static str, here: fn(usize) -> Result<A>) -> Self {
        Self { name, here }
    }

    /// Has a confined process answer it. Where none can be made, which takes root's privileges and mounts, the calling thread does:
    /// it is the helper's, which is confined too.
    pub fn ask(&self, number: usize) -> Result<A> {
        self.ask_within(number, MAX_BYTES).map(|(answer, _)| answer)
    }

    /// The same where the answer has no more than so many bytes; with the number of its bytes.
    pub fn ask_within(&self, number: usize, most: u64) -> Result<(A, u64)> {
        if !is_possible() {
            return (self.here)(number).map(|answer| (answer, 0));
        }
        let limit = patience::here(LIMIT);
        let ended = Confined::of_our_own([NAME, self.name, &number.to_string()], limit)?.run(false, most)?;
        let bytes = ended.said.len() as u64;
        ensure!(bytes < most, "the rules are too long to be read");
        // The limits of its time and memory end it so.
        ensure!(
            ended.status.code() != Some(KILLED),
            "the rules take more time or memory to read than observer takes for them"
        );
        ensure!(ended.status.success(), "the process that reads rules failed ({})", ended.status);
        let answer: Result<A, String> = postcard::from_bytes(&ended.said).context("rules could not be read")?;
        answer.map(|answer| (answer, bytes)).map_err(anyhow::Error::msg)
    }
}

/// A question whatever its answer's type is.
pub trait Answering: Sync {
    /// What it is called.
    fn name(&self) -> &'static str;
    /// The answer to it in bytes.
    fn answer(&self, number: usize) -> Result<Vec<u8>>;
}

impl<A: Serialize> Answering for Question<A> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn answer(&self, number: usize) -> Result<Vec<u8>> {
        let answer = (self.here)(number).map_err(|error| format!("{error:#}"));
        Ok(postcard::to_stdvec(&answer)?)
    }
}

impl<A> fmt::Debug for Question<A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

/// The process itself: answers the question that its arguments ask; `None` where this process is another one.
pub fn main(questions: &[&dyn Answering]) -> Option<ExitCode> {
    let mut args = std::env::args_os();
    if args.next().as_deref() != Some(OsStr::new(NAME)) {
        return None;
    }
    let mut answer = || -> Result<()> {
        rustix::thread::set_name(&std::ffi::CString::new(NAME)?)?;
        let mut word = || args.next().and_then(|word| word.into_string().ok()).context("a word is missing");
        let (name, number) = (word()?, word()?.parse()?);
        let question = questions.iter().find(|question| question.name() == name).context("no such question")?;
        let bytes = question.answer(number)?;
        Ok(std::io::Write::write_all(&mut std::io::stdout(), &bytes)?)
    };
    Some(if answer().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Finds out whether such a process can be made, so that the first question need not.
pub fn prepare() {
    std::thread::spawn(is_possible);
}

/// Whether a confined process can be made at all: tried once, with nothing to read.
fn is_possible() -> bool {
    static POSSIBLE: OnceLock<bool> = OnceLock::new();
    *POSSIBLE.get_or_init(|| {
        let tried = NOTHING.try_once();
        if let Err(error) = &tried {
            log::debug!("rules are read by threads: {error:#}");
        }
        tried.is_ok()
    })
}

/// Asked once, to see that such a process can be made.
pub const NOTHING: Question<()> = Question::new("nothing", |_| Ok(()));

impl Question<()> {
    fn try_once(&self) -> Result<()> {
        let ended = Confined::of_our_own([NAME, self.name, "0"], patience::here(LIMIT))?.run(false, MAX_BYTES)?;
        ensure!(ended.status.success(), "{}", ended.status);
        Ok(())
    }
}
