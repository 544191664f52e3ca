//! The initial memory file system of a machine: a busybox, the modules that reach the root, the scripts.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::packages::Unpacked;
use crate::command;

/// Modules without which nothing of the outside is reached; some kernels have them built in.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay"];

/// What lies in it, beside busybox and modules.
const FILES: [(&str, &str, u32); 4] = [
    ("init", include_str!("init.sh"), 0o755),
    ("guest.sh", include_str!("guest.sh"), 0o644),
    ("observer-vm.service", include_str!("observer-vm.service"), 0o644),
    ("observer-vm.target", include_str!("observer-vm.target"), 0o644),
];

/// Makes it anew; `job` is the machine's script. Returns its path.
pub(crate) fn make(kernel: &Unpacked, job: &str) -> Result<PathBuf> {
    let tree = kernel.folder.join("initramfs");
    let _ = fs::remove_dir_all(&tree);
    for folder in ["bin", "modules"] {
        fs::create_dir_all(tree.join(folder)).with_context(|| format!("cannot make {}", tree.display()))?;
    }
    fs::copy(&kernel.busybox, tree.join("bin/busybox")).context("cannot copy busybox")?;
    for (name, text, mode) in FILES {
        let path = tree.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    fs::write(tree.join("job.sh"), job)?;
    modules(kernel, &tree.join("modules"))?;
    let archive = kernel.folder.join("initramfs.cpio");
    let mut pack = command::new("sh");
    pack.args(["-c", "find . | cpio --quiet --create --format=newc"]).current_dir(&tree);
    pack.stdout(File::create(&archive)?);
    command::check(&mut pack)?;
    Ok(archive)
}

/// Copies the modules with all that they need, unpacked, and their order.
fn modules(kernel: &Unpacked, into: &Path) -> Result<()> {
    let mut order: Vec<String> = Vec::new();
    for name in MODULES {
        let mut needs = command::new("modprobe");
        needs.arg("-d").arg(&kernel.folder).args(["-S", &kernel.version, "--show-depends", name]);
        let listing =
            command::output(&mut needs).with_context(|| format!("kernel {} has no {name}", kernel.version))?;
        for path in listing.lines().filter_map(|line| line.strip_prefix("insmod ")).map(str::trim) {
            let file = Path::new(path).file_name().context("a module without a name")?.to_string_lossy().into_owned();
            let plain = file.trim_end_matches(".xz").trim_end_matches(".zst").trim_end_matches(".gz").to_owned();
            if order.contains(&plain) {
                continue;
            }
            unpack(Path::new(path), &into.join(&plain))?;
            order.push(plain);
        }
    }
    fs::write(into.join("order"), order.join("\n") + "\n").context("cannot write the modules' order")
}

fn unpack(module: &Path, into: &Path) -> Result<()> {
    let program = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::copy(module, into).map(drop).with_context(|| format!("cannot copy {}", module.display())),
    };
    let mut unpack = Command::new(program);
    unpack.arg("-dc").arg(module).stdin(Stdio::null()).stdout(File::create(into)?);
    let status = unpack.status().with_context(|| format!("cannot run {program}"))?;
    ensure!(status.success(), "cannot unpack {}", module.display());
    Ok(())
}
