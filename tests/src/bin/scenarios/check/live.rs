//! Real connections, proxies, and the resolver that names are asked of.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use harness::{
    lab::{FAR_V4, FAR_V6, Lab, SERVER_V4, Server},
    observer::{command, expect, program},
    wait_for,
};
use serde_json::{Value, json};

use super::{check, lines};
use crate::{Outcome, Scenario};

pub(super) const ALL: &[Scenario] = &[
    ("real_connections", connections),
    ("proxies_in_place_of_what_is_behind", proxies),
    ("a_resolver_that_is_blocked", resolver),
];

/// A certificate for `good.example`, by an issuer whose own is in a file.
struct Certificate {
    folder: tempfile::TempDir,
}

impl Certificate {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        const SCRIPT: &str = "set -e; cd \"$1\"; \
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca; \
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out own.csr -subj /CN=good.example; \
            printf 'subjectAltName=DNS:good.example,DNS:*.good.example' > names; \
            openssl x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out own.pem";
        let output = Command::new("sh").args(["-c", SCRIPT, "sh"]).arg(folder.path()).output()?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        Ok(Self { folder })
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A real server that shows it.
    fn server(&self, lab: &Lab, port: u16) -> Result<Server> {
        let (port_text, own, key) = (port.to_string(), self.file("own.pem"), self.file("key.pem"));
        let args = ["s_server", "-4", "-quiet", "-accept", &port_text, "-cert", &own, "-key", &key, "-www"];
        let mut server = lab.server.command("openssl");
        let child: Child =
            server.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let server = Server(child);
        wait_for("the TLS server", || Ok(lab.server.table("tcp")?.contains(&format!(":{port:04X} ")).then_some(())))?;
        Ok(server)
    }
}

/// Answers one kind of question: whatever comes is sent back.
const ECHO: &str = "import socket,sys\ns=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM)\ns.bind(('::',int(sys.argv[1])))\n\
                    while True:\n  d,a=s.recvfrom(2048)\n  s.sendto(d,a)";

fn live(event: &Value) -> &Value {
    &event["egress"]["check"]["live"]
}

fn says(event: &Value, step: &str, words: &str) -> Result<()> {
    let live = live(event);
    let why = live["why"].as_str().unwrap_or_default();
    ensure!(live["failed"] == step && why.contains(words), "expected `{words}` at {step}: {event}");
    Ok(())
}

fn connections() -> Result<Outcome> {
    if Command::new("openssl").arg("version").output().is_err() {
        return Ok(Outcome::Skipped("openssl is not installed".to_owned()));
    }
    let lab = Lab::new()?;
    let certificate = Certificate::new()?;
    let _servers = [certificate.server(&lab, 443)?, lab.web_server(8443)?];
    let mut echo = lab.server.command("python3");
    let _echo = Server(echo.args(["-IS", "-c", ECHO, "53"]).stdin(Stdio::null()).spawn()?);
    wait_for("the echo", || Ok(lab.server.table("udp6")?.contains(":0035 ").then_some(())))?;
    lab.server.nft("table inet t { chain i { type filter hook input priority 0; tcp dport 444 drop\n} }")?;
    lab.client.nft(
        "table inet t { chain o { type filter hook output priority 0; tcp dport 445 drop\nmeta skuid 65534 tcp dport 443 drop\n} }",
    )?;
    let ca = certificate.file("ca.pem");
    let ask = |roots: &str, args: &[&str]| -> Result<(Option<i32>, Vec<Value>)> {
        let mut command = command();
        command.args(["check", "--live", "--no-fix", "-o", "json", "--netns"]).arg(lab.client.path());
        for name in ["good.example", "wrong.example"] {
            command.args(["--resolve", &format!("{name}:{FAR_V4}")]);
        }
        let output = command.args(args).env("SSL_CERT_FILE", roots).stdin(Stdio::null()).output()?;
        Ok((output.status.code(), lines(&output)?))
    };
    let v6 = format!("[{FAR_V6}]:8443");
    let (status, good) = ask(&ca, &["good.example:443", &v6, &format!("{SERVER_V4}:53/udp")])?;
    ensure!(status == Some(0), "{status:?}: {good:?}");
    expect(&good[0], &[("/egress/check/live/certificate", json!(["good.example", "*.good.example"]))])?;
    ensure!(live(&good[0])["tls_ms"].is_u64() && live(&good[0])["connect_ms"].is_u64(), "{}", good[0]);
    ensure!(live(&good[1])["connect_ms"].is_u64() && live(&good[1])["tls_ms"].is_null(), "{}", good[1]);
    ensure!(live(&good[2])["answer_ms"].is_u64(), "{}", good[2]);
    let (far444, far445, far81) = (format!("{FAR_V4}:444"), format!("{FAR_V4}:445"), format!("{FAR_V4}:81"));
    let (status, bad) = ask(
        &ca,
        &[
            "wrong.example:443",
            "good.example:8443",
            &far444,
            &far445,
            &far81,
            "203.0.113.0/24:443",
            &format!("{SERVER_V4}:123/udp"),
        ],
    )?;
    ensure!(status == Some(1), "{status:?}: {bad:?}");
    says(&bad[0], "tls", "not for wrong.example but for good.example")?;
    says(&bad[1], "tls", "does not speak TLS")?;
    says(&bad[2], "connect", "nothing came back in 5 s")?;
    expect(&bad[2], &[("/event/action", json!("egress-allowed"))])?;
    says(&bad[3], "connect", "nothing came back in 5 s")?;
    expect(&bad[3], &[("/event/action", json!("egress-blocked"))])?;
    says(&bad[4], "connect", "refused")?;
    ensure!(live(&bad[5])["why"] == "a network is not tried" && live(&bad[5])["failed"].is_null(), "{}", bad[5]);
    says(&bad[7], "answer", "refused")?;
    // Another issuer's.
    let (_, untrusted) = ask(&certificate.file("own.pem"), &["good.example:443"])?;
    says(&untrusted[0], "tls", "does not trust the certificate's issuer")?;
    // Whoever would send.
    let (_, other) = ask(&ca, &["--as", "nobody", "good.example:443"])?;
    says(&other[0], "connect", "nothing came back in 5 s")?;
    // A name without an address is not tried.
    let (status, unknown) = ask(&ca, &["--no-dns", "none.example:443"])?;
    ensure!(status == Some(0) && live(&unknown[0])["failed"].is_null(), "{unknown:?}");
    // In words.
    let mut human = command();
    human.args(["check", "--live", "--no-fix", "--netns"]).arg(lab.client.path());
    let human =
        human.args(["good.example:443", "--resolve", &format!("good.example:{FAR_V4}")]).env("SSL_CERT_FILE", &ca);
    let text = String::from_utf8(human.stdin(Stdio::null()).output()?.stdout)?;
    ensure!(
        text.contains("live v4: connected in ") && text.contains("certificate of good.example, *.good.example"),
        "{text}"
    );
    ensure!(text.contains("then real connections were made, as asked by --live"), "{text}");
    Ok(Outcome::Passed)
}

/// What a shell's proxy stands for is what is installed; the agent that runs has its own.
fn proxies() -> Result<Outcome> {
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; tcp dport 3128 drop\n} }")?;
    let mut command = command();
    command
        .args(["check", "--no-dns", "-o", "json", "--netns"])
        .arg(lab.client.path())
        .args(["datadog", &format!("{FAR_V4}:443")]);
    command.env("HTTPS_PROXY", format!("http://user:secret@{SERVER_V4}:3128"));
    let output = command.stdin(Stdio::null()).output()?;
    let (told, said) = (lines(&output)?, String::from_utf8_lossy(&output.stderr).into_owned());
    ensure!(output.status.code() == Some(1) && !format!("{told:?}{said}").contains("secret"), "{}", output.status);
    let is_proxy = |event: &&Value| event["destination"]["port"] == 3128;
    let proxy: Vec<&Value> = told.iter().filter(is_proxy).collect();
    ensure!(proxy.len() == 1, "{proxy:?}");
    expect(proxy[0], &[("/destination/ip", json!(SERVER_V4)), ("/egress/check/phase", json!("install"))])?;
    expect(proxy[0], &[("/event/action", json!("egress-blocked")), ("/egress/fix/verified", json!(true))])?;
    let purpose = proxy[0]["egress"]["check"]["purpose"].as_str().unwrap_or_default();
    ensure!(purpose.starts_with("proxy by the environment, to install.datadoghq.com and "), "{purpose}");
    let is_left =
        |event: &&Value| event["egress"]["check"]["phase"] == "install" && event["destination"]["port"] == 443;
    ensure!(told.iter().filter(is_left).count() == 0, "installed without the proxy: {told:?}");
    ensure!(told.iter().any(|event| event["egress"]["check"]["phase"] == "run"), "{told:?}");
    ensure!(
        told.iter().any(|event| event["destination"]["ip"] == FAR_V4 && event["event"]["action"] == "egress-allowed"),
        "{told:?}"
    );
    ensure!(said.contains("HOST:PORT is tested without it"), "{said}");
    Ok(Outcome::Passed)
}

/// It is reported beside what was asked, with its rule and one fix; and not when it is not blocked.
fn resolver() -> Result<Outcome> {
    for rule in ["udp dport 53 drop", "udp dport 54 drop"] {
        let lab = Lab::new()?;
        lab.client.nft(&format!("table inet t {{ chain o {{ type filter hook output priority 0; {rule}\n}} }}"))?;
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), format!("nameserver {SERVER_V4}\n"))?;
        // Names are looked up without privileges.
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644))?;
        let mounted = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", Path::display(file.path()));
        let mut command = lab.client.command("unshare");
        command.args(["-m", "sh", "-c", &mounted, "sh"]).arg(program());
        command.args(["check", "--no-fix", "-o", "json", "none.example:443"]);
        let output = command.stdin(Stdio::null()).output()?;
        let told = lines(&output)?;
        let is_blocked = rule.contains("53");
        let of_dns: Vec<&Value> = told.iter().filter(|event| event["destination"]["ip"] == SERVER_V4).collect();
        ensure!(of_dns.len() == usize::from(is_blocked), "{rule}: {told:?}");
        if let Some(event) = of_dns.first() {
            let rule = event["egress"]["rule"]["text"].as_str().context("no rule")?;
            ensure!(event["event"]["action"] == "egress-blocked" && rule.contains("udp dport 53"), "{event}");
        }
        ensure!(output.status.code() == Some(i32::from(is_blocked)), "{rule}: {}", output.status);
    }
    // Of another namespace it is not the resolver.
    let lab = Lab::new()?;
    lab.client.nft("table inet t { chain o { type filter hook output priority 0; udp dport 53 drop\n} }")?;
    let told = lines(&check(&lab.client, &["--no-fix", "-o", "json", "localhost:443"])?)?;
    ensure!(told.iter().all(|event| event["destination"]["port"] == 443), "{told:?}");
    Ok(Outcome::Passed)
}
