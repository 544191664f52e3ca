//! A network and mount namespace of its own, held by a process that sleeps.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{prctl::set_pdeathsig, signal::Signal},
};
use serde_json::Value;
use tempfile::TempDir;

/// A namespace; gone when dropped, with everything in it.
pub struct Namespace {
    holder: Child,
    overlay: Option<TempDir>,
}

impl Namespace {
    /// Makes one with its loopback up.
    #[expect(unsafe_code, reason = "what a child does before it becomes its program")]
    pub fn new() -> Result<Self> {
        let mut holder = Command::new("sleep");
        holder.arg("infinity").stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: three system calls, which allocate nothing. The signal makes it die with the thread that made it.
        unsafe {
            holder.pre_exec(|| {
                set_pdeathsig(Signal::SIGKILL)?;
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
                Ok(mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?)
            });
        }
        // The program runs when this returns.
        let holder = holder.spawn().context("cannot start the namespace's holder")?;
        let namespace = Self { holder, overlay: None };
        namespace.ip(&["link set lo up"])?;
        Ok(namespace)
    }

    /// The one in which this program itself is: what is done there is not undone by itself.
    pub fn own() -> Result<Self> {
        let mut holder = Command::new("sleep");
        let holder = holder.arg("infinity").stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        Ok(Self { holder, overlay: None })
    }

    /// Process id of the holder.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Path of the network namespace.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.pid()))
    }

    /// Inode number of the network namespace.
    pub fn inode(&self) -> Result<u64> {
        Ok(fs::metadata(self.path())?.ino())
    }

    /// A command inside; its process id is the child's own, its working folder `/`.
    #[expect(unsafe_code, reason = "what a child does before it becomes its program")]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let namespaces = ["net", "mnt"].map(|kind| File::open(format!("/proc/{}/ns/{kind}", self.pid())));
        // SAFETY: two system calls, which allocate nothing.
        unsafe {
            command.pre_exec(move || {
                for namespace in &namespaces {
                    let namespace = namespace.as_ref().map_err(std::io::Error::kind)?;
                    setns(namespace, CloneFlags::empty())?;
                }
                Ok(())
            });
        }
        command
    }

    /// Does something in the network namespace, by a thread of this process.
    pub fn inside<T: Send>(&self, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = File::open(self.path()).context("the namespace's holder ended")?;
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
                what()
            });
            thread.join().map_err(|_| anyhow::anyhow!("a thread in the namespace failed"))?
        })
    }

    /// A table of `/proc/net`.
    pub fn table(&self, name: &str) -> Result<String> {
        let path = format!("/proc/thread-self/net/{name}");
        self.inside(|| fs::read_to_string(&path).with_context(|| format!("cannot read {path}")))
    }

    /// Sets a number of `/proc/sys/net`.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.inside(|| fs::write(&path, value).with_context(|| format!("cannot write {path}")))
    }

    /// Runs a command inside to its end; fails when it does, with what it said.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.command(program).args(args).stdin(Stdio::null()).output()?;
        said(&format!("{program} {}", args.join(" ")), &output)
    }

    /// Runs a command inside with text on its input.
    pub fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<String> {
        let mut child = self
            .command(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        child.stdin.take().context("no input")?.write_all(input.as_bytes())?;
        said(&format!("{program} {}", args.join(" ")), &child.wait_with_output()?)
    }

    /// Lines for `ip`.
    pub fn ip(&self, lines: &[&str]) -> Result<()> {
        self.feed("ip", &["-batch", "-"], &lines.join("\n")).map(drop)
    }

    /// Adds an nftables ruleset; closing braces may end a line, which nft itself does not take.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        let mut text = String::new();
        for mut line in ruleset.lines() {
            let mut closing = 0;
            while let Some(rest) = line.strip_suffix(" }") {
                (line, closing) = (rest, closing + 1);
            }
            text.push_str(line);
            text.push('\n');
            text.push_str(&"}\n".repeat(closing));
        }
        self.feed("nft", &["-f", "-"], &text).map(drop)
    }

    /// Packets that the counters of all nftables rules hold.
    pub fn counted(&self) -> Result<u64> {
        let listing: Value = serde_json::from_str(&self.run("nft", &["-j", "list", "ruleset"])?)?;
        let rules = listing["nftables"].as_array().context("nft's listing")?;
        Ok(rules
            .iter()
            .filter_map(|item| item["rule"]["expr"].as_array())
            .flatten()
            .filter_map(|expression| expression["counter"]["packets"].as_u64())
            .sum())
    }

    /// It has been given some.
    pub fn has_private_files(&self) -> bool {
        self.overlay.is_some()
    }

    /// Gives it private, writable copies of /etc, /var/lib, /var/cache and an empty /run: what ufw, apt and others write
    /// stays inside.
    pub fn private_files(&mut self) -> Result<&Path> {
        let folder = TempDir::with_prefix("observer-")?;
        let base = folder.path().display().to_string();
        // On a tmpfs of its own: an overlay does not stack on every file system, and nothing is left behind.
        let script = format!(
            "set -e
             mount -t tmpfs observer {base}
             for path in etc var/lib var/cache var/log; do
                 mkdir -p {base}/upper/$path {base}/work/$path
                 mount -t overlay overlay -o lowerdir=/$path,upperdir={base}/upper/$path,workdir={base}/work/$path /$path
             done
             mkdir {base}/run
             mount --bind {base}/run /run
             mkdir -p /run/lock /run/netns"
        );
        self.run("sh", &["-c", &script])?;
        Ok(self.overlay.insert(folder).path())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn said(what: &str, output: &Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "`{what}` failed ({}): {}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
