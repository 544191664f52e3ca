//! All tests, and one honest count of them.

use std::{
    fmt,
    io::{BufRead, BufReader},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{build, command, package, published, root, setup, speed, vm};

/// What test runners counted.
#[derive(Clone, Copy, Default)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    skipped: u64,
}

impl Count {
    /// Takes in a closing line (`test result: ok. 3 passed; 0 failed; …`); every other line is none.
    pub(crate) fn take(&mut self, line: &str) {
        if !line.starts_with("test result:") {
            return;
        }
        let number = |word: &str| {
            let before = line.split_once(word).map_or("", |(before, _)| before.trim_end());
            before.rsplit([' ', ';']).next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
        };
        self.passed += number("passed");
        self.failed += number("failed");
        self.skipped += number("ignored");
    }

    /// Takes in how one test ended: `ok`, `FAILED` or `ignored`, with more behind it or not.
    pub(crate) fn take_one(&mut self, end: &str) {
        match end.split(' ').next() {
            Some("ok") => self.passed += 1,
            Some("FAILED") => self.failed += 1,
            Some("ignored") => self.skipped += 1,
            _ => {}
        }
    }

    /// One more that was skipped.
    pub(crate) fn skip(&mut self) {
        self.skipped += 1;
    }

    /// Adds another.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// What begins the line of a scenario that failed beside others and runs a second time, alone.
const AGAIN: &str = "run again alone: ";
/// Characters of a line of a failure that are shown at the end.
const SHOWN: usize = 1500;

/// Why tests failed: shown once more at the end, since what is read of a long run is its end.
#[derive(Default)]
pub(crate) struct Failures {
    /// Names and first failures of scenarios that failed beside others and ran again alone.
    again: Vec<String>,
    /// Lines of test runners about what failed.
    lines: Vec<String>,
    /// Between a runner's first and second `failures:`, where it says why.
    is_inside: bool,
}

impl Failures {
    /// Takes in a line of a test runner, with `prefix` in front of what is kept.
    pub(crate) fn take(&mut self, prefix: &str, line: &str) {
        let kept = |text: &str| format!("{prefix}{}", text.chars().take(SHOWN).collect::<String>());
        if let Some(first) = line.strip_prefix(AGAIN) {
            self.again.push(kept(first));
        } else if line == "failures:" {
            self.is_inside = !self.is_inside;
        } else if line.starts_with("test result:") {
            self.is_inside = false;
        } else if self.is_inside && !line.is_empty() {
            self.lines.push(kept(line));
        }
    }

    /// Adds another's.
    pub(crate) fn add(&mut self, other: Self) {
        self.again.extend(other.again);
        self.lines.extend(other.lines);
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.again.is_empty() {
            writeln!(formatter, "\nfailed beside others, then ran again alone ({}):", self.again.len())?;
        }
        for first in &self.again {
            writeln!(formatter, "  {first}")?;
        }
        if !self.lines.is_empty() {
            writeln!(formatter, "\nfailed:")?;
        }
        for line in &self.lines {
            writeln!(formatter, "  {line}")?;
        }
        Ok(())
    }
}

/// Unit and property tests, then the scenarios on this kernel, then, unless tests are named, on others.
pub(crate) fn run(filter: Option<&str>) -> Result<ExitCode> {
    setup::test_tools()?;
    let observer = build::release()?;
    let testbed = build::ebpf_side()?.with_file_name("testbed-bpf");
    let packages = root().join("target/test-packages");
    setup::package_tools()?;
    package::rpm(&observer, "0.0.1", &packages)?;
    let mut total = Count::default();
    let mut failures = Failures::default();
    let mut clean = true;

    let mut units = command::cargo();
    units.args(["test", "--quiet", "--workspace", "--no-fail-fast"]).args(filter);
    clean &= count(&mut units, &mut total, &mut failures)?;

    let scenarios = build::test_program("scenarios")?;
    let mut scenarios = command::new(scenarios);
    scenarios.env("OBSERVER", observer).env("OBSERVER_TESTBED", testbed).args(filter);
    scenarios.env("OBSERVER_PACKAGES", packages);
    if let Some(script) = published::firewall_of_a_container() {
        scenarios.env("OBSERVER_PUBLISHED_SCRIPT", script);
    }
    // One more than there are processors: they wait more than they compute, and with more of them rulesets are read too late.
    let at_once = 1 + std::thread::available_parallelism().map_or(1, usize::from);
    scenarios.args(["--test-threads", &at_once.to_string()]);
    let slowness = speed::slowness();
    println!("this machine is {slowness:.1} times slower than the one on which limits were chosen");
    scenarios.env("OBSERVER_PATIENCE_FACTOR", slowness.to_string());
    clean &= count(&mut scenarios, &mut total, &mut failures)?;

    if filter.is_none() {
        println!("\non this kernel: {total}; now on others");
        let (others, well) = vm::every_run(&mut failures)?;
        total.add(others);
        clean &= well;
    }
    print!("{failures}");
    println!("{total}");
    if !clean && total.failed == 0 {
        bail!("a test program or a machine failed without naming a test: see above");
    }
    if total.passed == 0 && filter.is_none() {
        bail!("no test ran");
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a test program, shows what it prints, and adds up its closing lines (`test result: ok. 3 passed; 0 failed; …`).
/// True when it ended well.
pub(crate) fn count(program: &mut Command, total: &mut Count, failures: &mut Failures) -> Result<bool> {
    let text = command::text(program);
    let mut child = program.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run `{text}`"))?;
    let stdout = child.stdout.take().context("the test program has no stdout")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.with_context(|| format!("cannot read what `{text}` prints"))?;
        println!("{line}");
        total.take(&line);
        failures.take("", &line);
    }
    Ok(child.wait().with_context(|| format!("cannot wait for `{text}`"))?.success())
}
