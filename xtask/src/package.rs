//! `cargo xtask package`: a .deb, a .rpm and a tar of the program, with checksums, a list of its parts and, with a key, a signature.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::UNIX_EPOCH,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{build, command, root, setup};

/// What the packages are called. `observer` is another program's in some distributions.
const NAME: &str = "egress-observer";
/// Who looks after them.
const MAINTAINER: &str = "The observer authors <observer@localhost.localdomain>";
/// Version of the tool that lists a program's parts.
const SBOM_TOOL: &str = "0.5.7";

/// What is wanted.
#[derive(clap::Args)]
pub(crate) struct Wanted {
    /// Where the packages go
    #[arg(long, default_value = "target/package")]
    into: PathBuf,
    /// Sign the checksums with this key file (minisign)
    #[arg(long)]
    sign: Option<PathBuf>,
    /// Run lintian and rpmlint
    #[arg(long)]
    lint: bool,
}

/// Makes everything.
pub(crate) fn run(wanted: &Wanted) -> Result<()> {
    setup::package_tools()?;
    let observer = build::release()?;
    let into = root().join(&wanted.into);
    fs::create_dir_all(&into)?;
    // What another version left; nothing else of the folder.
    for entry in fs::read_dir(&into)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.metadata()?.is_file() && (name.starts_with(NAME) || name.starts_with("SHA256SUMS")) {
            fs::remove_file(entry.path())?;
        }
    }
    let version = env!("CARGO_PKG_VERSION");
    let packages = [deb(&observer, version, &into)?, rpm(&observer, version, &into)?, tar(&observer, version, &into)?];
    let mut files = packages.to_vec();
    files.push(parts(version, &into)?);
    let checksums = into.join("SHA256SUMS");
    let names = files.iter().filter_map(|file| file.file_name());
    let text = command::output(Command::new("sha256sum").args(names).current_dir(&into)).context("sha256sum failed")?;
    fs::write(&checksums, text + "\n")?;
    files.push(checksums.clone());
    if let Some(key) = &wanted.sign {
        setup::tools(&[("minisign", "minisign")], "signing")?;
        command::check(command::new("minisign").arg("-Sm").arg(&checksums).arg("-s").arg(key))?;
        files.push(into.join("SHA256SUMS.minisig"));
    }
    if wanted.lint {
        setup::tools(&[("lintian", "lintian"), ("rpmlint", "rpmlint")], "checking packages")?;
        command::check(
            command::new("lintian").args(["--tag-display-limit", "0", "--fail-on", "warning"]).arg(&packages[0]),
        )?;
        command::check(command::new("rpmlint").args(["--config", "packaging/rpm/rpmlint.toml"]).arg(&packages[1]))?;
    }
    for file in files {
        println!("{}", file.display());
    }
    Ok(())
}

/// The .deb of a program under a version.
pub(crate) fn deb(observer: &Path, version: &str, into: &Path) -> Result<PathBuf> {
    let tree = into.join("deb");
    files(observer, &tree, Layout::Debian)?;
    let control = tree.join("DEBIAN");
    fs::create_dir_all(&control)?;
    let folder = root().join("packaging/debian");
    let arch = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("Debian's name of the architecture {other} is not known"),
    };
    let overrides = fs::read(root().join("packaging/debian/lintian-overrides")).context("lintian-overrides")?;
    write(&tree.join("usr/share/lintian/overrides").join(NAME), &overrides, 0o644)?;
    let date = command::output(command::new("date").args(["-R", "-u", "-d", &format!("@{}", epoch())]));
    let changes = format!(
        "{NAME} ({version}) unstable; urgency=medium\n\n  * See NEWS.md.gz.\n\n -- {MAINTAINER}  {}\n",
        date.context("date failed")?
    );
    compressed(&tree.join(document("changelog")), changes.as_bytes())?;
    let size = bytes(&tree)?.div_ceil(1024).to_string();
    for name in ["control", "conffiles", "postinst", "prerm", "postrm"] {
        let text = fs::read_to_string(folder.join(name)).with_context(|| format!("packaging/debian/{name}"))?;
        let text = text
            .replace("@VERSION@", version)
            .replace("@MAINTAINER@", MAINTAINER)
            .replace("@ARCH@", arch)
            .replace("@SIZE@", &size);
        write(&control.join(name), text.as_bytes(), if text.starts_with("#!") { 0o755 } else { 0o644 })?;
    }
    let sums = command::output(
        Command::new("sh").args(["-c", "find usr -type f | LC_ALL=C sort | xargs md5sum"]).current_dir(&tree),
    );
    write(&control.join("md5sums"), (sums.context("md5sum failed")? + "\n").as_bytes(), 0o644)?;
    let package = into.join(format!("{NAME}_{version}_{arch}.deb"));
    let mut pack = command::new("dpkg-deb");
    pack.args(["--root-owner-group", "-Zxz", "--build"]).arg(&tree).arg(&package).env("SOURCE_DATE_EPOCH", epoch());
    command::check(pack.stdout(std::process::Stdio::null()))?;
    fs::remove_dir_all(&tree)?;
    Ok(package)
}

/// The .rpm of a program under a version.
pub(crate) fn rpm(observer: &Path, version: &str, into: &Path) -> Result<PathBuf> {
    let (tree, work) = (into.join("rpm"), into.join("rpmbuild"));
    files(observer, &tree, Layout::RedHat)?;
    fs::create_dir_all(&work)?;
    let spec = fs::read_to_string(root().join("packaging/rpm/egress-observer.spec")).context("the spec file")?;
    let date = command::output(Command::new("date").env("LC_ALL", "C").args([
        "-u",
        "+%a %b %d %Y",
        "-d",
        &format!("@{}", epoch()),
    ]));
    let spec = spec.replace("@VERSION@", version).replace("@ROOT@", &tree.display().to_string());
    let spec = spec.replace("@DATE@", &date.context("date failed")?);
    fs::write(work.join("egress-observer.spec"), spec)?;
    let mut pack = command::new("rpmbuild");
    pack.arg("--quiet").arg("-bb").arg("--define").arg(format!("_topdir {}", work.display()));
    // xz is what the oldest distribution reads that the program runs on.
    pack.args(["--define", "_binary_payload w6.xzdio", "--define", "_buildhost localhost"]);
    pack.args(["--define", "use_source_date_epoch_as_buildtime 1", "--define", "clamp_mtime_to_source_date_epoch 1"]);
    pack.arg(work.join("egress-observer.spec")).env("SOURCE_DATE_EPOCH", epoch());
    command::check(&mut pack)?;
    let name = format!("{NAME}-{version}-1.{}.rpm", env::consts::ARCH);
    let package = into.join(&name);
    fs::rename(work.join("RPMS").join(env::consts::ARCH).join(&name), &package).context("rpmbuild made no package")?;
    fs::remove_dir_all(&tree)?;
    fs::remove_dir_all(&work)?;
    Ok(package)
}

/// A tar for every other system: unpack it below `/`, or run the program from where it is.
fn tar(observer: &Path, version: &str, into: &Path) -> Result<PathBuf> {
    let name = format!("{NAME}-{version}-{}", env::consts::ARCH);
    let tree = into.join(&name);
    files(observer, &tree, Layout::RedHat)?;
    let package = into.join(format!("{name}.tar.xz"));
    let mut pack = command::new("tar");
    pack.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--xz", "--create"]);
    pack.arg(format!("--mtime=@{}", epoch())).arg("--file").arg(&package).arg("--directory").arg(into).arg(&name);
    command::check(&mut pack)?;
    fs::remove_dir_all(&tree)?;
    Ok(package)
}

/// The list of the program's parts: CycloneDX.
fn parts(version: &str, into: &Path) -> Result<PathBuf> {
    setup::cargo_tool("cargo-cyclonedx", SBOM_TOOL)?;
    let name = format!("{NAME}-{version}.cdx");
    let mut list = command::cargo();
    list.args(["cyclonedx", "--quiet", "--format", "json", "--override-filename", &name]);
    list.arg("--manifest-path").arg(root().join("observer/Cargo.toml")).env("SOURCE_DATE_EPOCH", epoch());
    command::check(&mut list)?;
    let made = format!("{name}.json");
    let package = into.join(&made);
    // One beside each manifest of the workspace: the program's is wanted.
    for member in ["observer", "observer-ebpf", "xtask", "tests"] {
        let file = root().join(member).join(&made);
        if member == "observer" {
            fs::copy(&file, &package).context("cargo-cyclonedx made no list")?;
        }
        let _ = fs::remove_file(file);
    }
    Ok(package)
}

/// Where distributions differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    Debian,
    RedHat,
}

/// Puts every file where the system has it, below `tree`.
fn files(observer: &Path, tree: &Path, layout: Layout) -> Result<()> {
    let zsh = match layout {
        Layout::Debian => "vendor-completions",
        Layout::RedHat => "site-functions",
    };
    let said = |args: &[&str]| -> Result<Vec<u8>> {
        let output = Command::new(observer).args(args).output().with_context(|| format!("cannot run {args:?}"))?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    };
    let copied = |path: &str| fs::read(root().join(path)).with_context(|| format!("cannot read {path}"));
    let program = tree.join("usr/bin/observer");
    write(&program, &fs::read(observer)?, 0o755)?;
    // The symbols serve nobody who has the package.
    command::check(command::new("strip").arg(&program))?;
    // Not what this machine's own file says.
    let empty = tree.with_extension("toml");
    fs::write(&empty, "")?;
    let defaults = said(&["record", "--print-config", "--config", &empty.display().to_string()])?;
    fs::remove_file(&empty)?;
    let mut texts = vec![
        ("usr/lib/systemd/system/observer.service".to_owned(), copied("packaging/observer.service")?),
        (format!("usr/lib/sysusers.d/{NAME}.conf"), copied("packaging/sysusers.conf")?),
        (format!("usr/lib/tmpfiles.d/{NAME}.conf"), copied("packaging/tmpfiles.conf")?),
        ("etc/observer/observer.toml".to_owned(), configuration(&defaults)?),
        ("usr/share/bash-completion/completions/observer".to_owned(), said(&["completions", "bash"])?),
        (format!("usr/share/zsh/{zsh}/_observer"), said(&["completions", "zsh"])?),
        ("usr/share/fish/vendor_completions.d/observer.fish".to_owned(), said(&["completions", "fish"])?),
        (document("prove-always.conf"), copied("packaging/prove-always.conf")?),
        (document("README.md"), copied("README.md")?),
        (document("SECURITY.md"), copied("SECURITY.md")?),
    ];
    // Debian has the Apache license's text itself.
    let licenses: &[(&str, &str)] = match layout {
        Layout::Debian => &[("copyright", "packaging/debian/copyright")],
        Layout::RedHat => &[("LICENSE-APACHE", "LICENSE-APACHE"), ("LICENSE-MIT", "LICENSE-MIT")],
    };
    for (name, from) in licenses {
        texts.push((document(name), copied(from)?));
    }
    for (folder, kept) in [("docs", ""), ("observer/profiles", "profiles/")] {
        for entry in fs::read_dir(root().join(folder))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            texts.push((document(&format!("{kept}{name}")), copied(&format!("{folder}/{name}"))?));
        }
    }
    for (path, text) in texts {
        write(&tree.join(path), &text, 0o644)?;
    }
    // Where an administrator's own profiles go.
    fs::create_dir_all(tree.join("etc/observer/profiles"))?;
    compressed(&tree.join("usr/share/man/man8/observer.8"), &said(&["man"])?)?;
    compressed(&tree.join(document("NEWS.md")), &copied("CHANGELOG.md")?)?;
    // Whatever the mask of whoever builds it takes away.
    command::check(command::new("chmod").args(["-R", "u=rwX,go=rX"]).arg(tree))
}

/// The configuration that is installed: every key, with its default, as a comment.
fn configuration(in_force: &[u8]) -> Result<Vec<u8>> {
    let text = std::str::from_utf8(in_force).context("the configuration is no text")?;
    let line = |line: &str| {
        if line.is_empty() || line.starts_with(['#', '[']) { line.to_owned() } else { format!("# {line}") }
    };
    Ok((text.lines().map(line).collect::<Vec<_>>().join("\n") + "\n").into_bytes())
}

/// Where a document is.
fn document(path: &str) -> String {
    format!("usr/share/doc/{NAME}/{path}")
}

/// Writes a file as `gzip` makes it, with that ending.
fn compressed(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, bytes, 0o644)?;
    command::check(command::new("gzip").args(["-9", "--no-name"]).arg(path))
}

/// Writes a file with its folders.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let folder = path.parent().context("a file without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot change {}", path.display()))
}

/// Bytes of all files below a folder.
fn bytes(tree: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(tree)? {
        let entry = entry?;
        let about = entry.metadata()?;
        sum += if about.is_dir() { bytes(&entry.path())? } else { about.len() };
    }
    Ok(sum)
}

/// The time that files in packages have: the caller's, or the last commit's.
fn epoch() -> String {
    let of_commit = || command::output(command::new("git").args(["log", "-1", "--format=%ct"]));
    let now = || UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs()).to_string();
    env::var("SOURCE_DATE_EPOCH").ok().or_else(of_commit).unwrap_or_else(now)
}
