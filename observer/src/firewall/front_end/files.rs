//! What a trial in a private copy needs of a front end, as data: which files it copies, what it starts, in which order.

/// What a trial needs of a front end.
#[derive(Clone, Copy)]
pub struct Needs {
    /// Folders of its files, which its programs write: a trial has copies of them.
    pub folders: &'static [&'static str],
    /// Single files in folders that are not its own, copied too.
    pub files: &'static [&'static str],
    /// Those of its files of which plans are made.
    pub planned_from: &'static [&'static str],
    /// Files of others that a plan's note speaks of. They are not copied.
    pub noted_from: &'static [&'static str],
    /// Scripts among its files that it runs whenever it loads its rules: they are not copied, and where one would be run nothing
    /// is tried.
    pub hooks: &'static [&'static str],
    /// Those of its files that a shell reads: each line must be an assignment to one of `variables`.
    pub shell_files: &'static [&'static str],
    /// Variables that these files may set.
    pub variables: &'static [&'static str],
    /// Programs that it runs beside [`commands`](super::FrontEnd::commands).
    pub programs: &'static [&'static str],
    /// Environment variables of programs in the copy.
    pub environment: &'static [(&'static str, &'static str)],
    /// Kernel modules that its programs always use.
    pub modules: &'static [&'static str],
}

impl Needs {
    /// Of one without files.
    pub(super) const NOTHING: Self = Self {
        folders: &[],
        files: &[],
        planned_from: &[],
        noted_from: &[],
        hooks: &[],
        shell_files: &[],
        variables: &[],
        programs: &[],
        environment: &[],
        modules: &[],
    };
}

/// One step on the way to a front end that has loaded its rules in a private copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A file is written.
    Write {
        /// Where.
        path: &'static str,
        /// What is in it.
        text: &'static str,
    },
    /// A command line must succeed.
    Run(String),
    /// A command line is run, and may fail.
    Try(String),
    /// A daemon is started, which stays until the trial ends.
    Start {
        /// The program.
        program: &'static str,
        /// Its arguments.
        args: &'static [&'static str],
    },
    /// Waits until something is up, which is when a path is there.
    AwaitPath {
        /// What is waited for.
        what: &'static str,
        /// The path.
        path: &'static str,
    },
    /// Waits until something is up, which is when a command line succeeds.
    AwaitCommand {
        /// What is waited for.
        what: &'static str,
        /// The command line.
        line: &'static str,
    },
}

/// Why a proposed configuration is not judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unjudged {
    /// What it is.
    pub why: &'static str,
    /// What to do instead.
    pub remedy: &'static str,
}

/// How a proposed configuration is loaded in a private copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// A command line to run first.
    pub before: Option<&'static str>,
    /// The file that it is written to.
    pub path: &'static str,
    /// The command that loads it.
    pub command: &'static [&'static str],
    /// What is otherwise where it is loaded on the host.
    pub note: Option<&'static str>,
}

/// Where a configuration is written that is no file of a front end's own.
pub(super) const PROPOSED: &str = "/tmp/proposed";
