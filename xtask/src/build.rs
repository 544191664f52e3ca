//! Builds both halves, one after the other: two builds at once would only share the cores.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{command, root, setup};

/// Target of the eBPF side.
const BPF_TARGET: &str = "bpfel-unknown-none";

/// The eBPF side; returns the path of its object.
pub(crate) fn ebpf_side() -> Result<PathBuf> {
    ebpf_side_for(std::env::consts::ARCH)
}

/// The eBPF side for kernels of an architecture.
fn ebpf_side_for(arch: &str) -> Result<PathBuf> {
    let toolchain = setup::toolchain()?;
    // The object's BTF comes from debug information; the architecture decides the layout of registers in bindings.
    let flags =
        ["-Cdebuginfo=2", "-Clinker=bpf-linker", "-Clink-arg=--btf", &format!("--cfg=bpf_target_arch=\"{arch}\"")];
    let target =
        root().join(if arch == std::env::consts::ARCH { "target/bpf".into() } else { format!("target/bpf-{arch}") });
    command::check(
        toolchain
            .cargo()
            .args(["build", "--quiet", "--package", "observer-ebpf", "--bins", "--features", "bpf", "--profile", "bpf"])
            .args(["--target", BPF_TARGET, "-Zbuild-std=core", "--target-dir"])
            .arg(&target)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")),
    )?;
    Ok(target.join(BPF_TARGET).join("bpf/observer-bpf"))
}

/// The program: one static file.
pub(crate) fn release() -> Result<PathBuf> {
    program("release")
}

/// The same in half the time, and slower: for a look at it.
pub(crate) fn quick() -> Result<PathBuf> {
    program("quick")
}

fn program(profile: &str) -> Result<PathBuf> {
    let object = ebpf_side()?;
    let triple = host()?;
    let variable = format!("CARGO_TARGET_{}_RUSTFLAGS", triple.to_uppercase().replace('-', "_"));
    // With an explicit target the flag does not reach procedural macros, which must stay dynamic.
    command::check(
        command::cargo()
            .args(["build", "--quiet", "--profile", profile, "--package", "observer", "--target", &triple])
            .env(variable, "-Ctarget-feature=+crt-static")
            .env("OBSERVER_BPF_OBJECT", object),
    )?;
    let built = root().join("target").join(&triple).join(profile).join("observer");
    let folder = root().join("target").join(profile);
    let program = folder.join("observer");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Replaced, not overwritten: a running observer keeps its file.
    let fresh = program.with_extension("new");
    fs::copy(&built, &fresh).with_context(|| format!("cannot copy {}", built.display()))?;
    fs::rename(&fresh, &program).context("cannot put the program in its place")?;
    Ok(program)
}

/// For another architecture: builds the program, and prepares the unit tests, which an emulator runs.
pub(crate) fn foreign(arch: &str) -> Result<Foreign> {
    let toolchain = setup::toolchain()?;
    let cross = setup::cross(&toolchain, arch)?;
    let object = ebpf_side_for(arch)?;
    let triple = format!("{arch}-unknown-linux-gnu");
    let variable = |what: &str| format!("CARGO_TARGET_{}_{what}", triple.to_uppercase().replace('-', "_"));
    let mut flags = "-Ctarget-feature=+crt-static".to_owned();
    if let Some(sysroot) = &cross.sysroot {
        flags.push_str(&format!(" --sysroot={}", sysroot.display()));
    }
    let cargo = |verb: &str| {
        let mut cargo = toolchain.cargo();
        cargo.args([verb, "--quiet", "--target", &triple, "--target-dir"]).arg(root().join("target/cross"));
        cargo.env(variable("RUSTFLAGS"), &flags).env(variable("LINKER"), &cross.linker);
        cargo.env(variable("RUNNER"), &cross.emulator).env("OBSERVER_BPF_OBJECT", &object);
        cargo
    };
    command::check(cargo("build").args(["--release", "--package", "observer"]))?;
    let mut tests = cargo("test");
    tests.args(["--package", "observer", "--package", "observer-ebpf", "--lib", "--no-fail-fast"]);
    Ok(Foreign { program: root().join("target/cross").join(&triple).join("release/observer"), tests })
}

/// What was built for another architecture.
pub(crate) struct Foreign {
    /// The program, one static file.
    pub(crate) program: PathBuf,
    /// Runs the unit tests.
    pub(crate) tests: Command,
}

/// A program of the tests package, with its neighbours, which it may run.
pub(crate) fn test_program(name: &str) -> Result<PathBuf> {
    command::check(command::cargo().args(["build", "--quiet", "--package", "observer-tests", "--bins"]))?;
    Ok(root().join("target/debug").join(name))
}

/// The demo's program alone.
pub(crate) fn demo() -> Result<PathBuf> {
    command::check(command::cargo().args(["build", "--quiet", "--package", "observer-tests", "--bin", "demo"]))?;
    Ok(root().join("target/debug/demo"))
}

fn host() -> Result<String> {
    let version = command::output(command::new("rustc").arg("-vV")).context("cannot run `rustc -vV`")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}
