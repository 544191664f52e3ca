//! The internet of the demo: a name server, the distribution's mirror on port 80, and the vendor's package host on port
//! 443, with certificates and packages made on the spot.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{FAR_V4, FAR_V6, Lab, SERVER_V4, Server},
    wait_for,
};
use tempfile::TempDir;

/// Name of the vendor's host.
const VENDOR: &str = "install.datadoghq.com";
/// Name of the distribution's mirror.
const MIRROR: &str = "mirror.example";

/// Serves a folder over HTTP, over TLS when it is given a certificate.
const WEB_SERVER: &str = r#"
import functools, http.server, socket, ssl, sys
folder, port, certificate = sys.argv[1], int(sys.argv[2]), sys.argv[3]
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
server = Server(("::", port), functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder))
if certificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

/// The running servers; they end when this is dropped.
pub(crate) struct PackageHost {
    _servers: Vec<Server>,
    _files: TempDir,
}

impl PackageHost {
    /// Starts the servers in the lab's server, and has the client use and trust them.
    pub(crate) fn new(lab: &Lab) -> Result<Self> {
        let files = TempDir::with_prefix("observer-demo-")?;
        let root = files.path();
        package(&root.join("mirror"), "demo-dependency", "1.0")?;
        package(&root.join("vendor/apt"), "datadog-agent", "7.50.3")?;
        fs::write(root.join("vendor/agent.key"), "not a real key\n")?;
        let certificate = certificate(root)?;

        let names = lab
            .server
            .command("dnsmasq")
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--pid-file=",
                "--log-facility=-",
            ])
            .args(["--user=root", "--group=root", "--bind-interfaces", &format!("--listen-address={SERVER_V4}")])
            .args(
                [VENDOR, MIRROR]
                    .iter()
                    .flat_map(|name| [format!("--address=/{name}/{FAR_V4}"), format!("--address=/{name}/{FAR_V6}")]),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start dnsmasq")?;
        let servers = vec![
            Server(names),
            web_server(lab, &root.join("mirror"), 80, None)?,
            web_server(lab, &root.join("vendor"), 443, Some(&certificate))?,
        ];
        wait_for("the demo's servers", || {
            let tcp = lab.server.table("tcp6")?;
            let udp = lab.server.table("udp")?;
            Ok((tcp.contains(":0050 ") && tcp.contains(":01BB ") && udp.contains(":0035 ")).then_some(()))
        })?;

        // All of these are the client's private copies.
        lab.client.feed("sh", &["-c", "cat > /etc/resolv.conf"], &format!("nameserver {SERVER_V4}\n"))?;
        lab.client.run(
            "sh",
            &[
                "-c",
                "rm -rf /etc/apt/sources.list* /etc/apt/apt.conf* && mkdir /etc/apt/sources.list.d /etc/apt/apt.conf.d",
            ],
        )?;
        let source = format!("deb [trusted=yes] http://{MIRROR} ./\n");
        lab.client.feed("sh", &["-c", "cat > /etc/apt/sources.list"], &source)?;
        let bundle = "mkdir -p /etc/ssl/certs && cat >> /etc/ssl/certs/ca-certificates.crt";
        lab.client.feed("sh", &["-c", bundle], &format!("\n{}", fs::read_to_string(root.join("cert.pem"))?))?;
        Ok(Self { _servers: servers, _files: files })
    }
}

fn web_server(lab: &Lab, folder: &Path, port: u16, certificate: Option<&Path>) -> Result<Server> {
    let child = lab
        .server
        .command("python3")
        .args(["-I", "-c", WEB_SERVER])
        .arg(folder)
        .arg(port.to_string())
        .arg(certificate.unwrap_or(Path::new("")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start a web server")?;
    Ok(Server(child))
}

/// A repository with one package, whose only file lies below /etc: in the client that is a private copy.
fn package(repository: &Path, name: &str, version: &str) -> Result<()> {
    let tree = repository.with_extension("tree");
    fs::create_dir_all(tree.join("DEBIAN"))?;
    fs::create_dir_all(tree.join("etc").join(name))?;
    fs::write(tree.join("etc").join(name).join("version"), format!("{name} {version}\n"))?;
    let mut control = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: observer demo <demo@example.com>\n\
         Description: stands in for {name}\n"
    );
    fs::write(tree.join("DEBIAN/control"), &control)?;
    fs::create_dir_all(repository)?;
    let archive = repository.join(format!("{name}.deb"));
    run(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&tree).arg(&archive))?;
    let digest = run(Command::new("sha256sum").arg(&archive))?;
    let digest = digest.split(' ').next().context("sha256sum printed nothing")?;
    let size = fs::metadata(&archive)?.len();
    write!(control, "Filename: ./{name}.deb\nSize: {size}\nSHA256: {digest}\n")?;
    fs::write(repository.join("Packages"), control)?;
    Ok(())
}

/// A key and a certificate for the vendor's name, in one file.
fn certificate(root: &Path) -> Result<std::path::PathBuf> {
    let (key, certificate, both) = (root.join("key.pem"), root.join("cert.pem"), root.join("both.pem"));
    run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", &format!("/CN={VENDOR}"), "-addext", &format!("subjectAltName=DNS:{VENDOR}")])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate))?;
    fs::write(&both, format!("{}{}", fs::read_to_string(&key)?, fs::read_to_string(&certificate)?))?;
    Ok(both)
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
