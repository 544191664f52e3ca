//! What becomes of a real connection: begun by the helper as whoever would send, followed here without privileges up to the name
//! in the other end's certificate.

use std::{
    collections::HashMap,
    io,
    net::{TcpStream as PlainTcp, UdpSocket as PlainUdp},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use hickory_resolver::proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use serde::Serialize;
use tokio::{
    net::{TcpStream, UdpSocket},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{CertificateError, ClientConfig, Error as TlsError, RootCertStore, pki_types::ServerName},
};

use crate::sys::tcp_round_trip;

/// A step that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Ports on which the other end begins with TLS.
const TLS_PORTS: [u16; 11] = [443, 465, 636, 853, 993, 995, 5671, 6514, 8443, 8883, 10516];
const DNS: u16 = 53;
const TIME: u16 = 123;
/// The first byte of a client's question to a time server, version 4 (RFC 5905), and how long that is.
const TIME_QUESTION: (u8, usize) = (0x23, 48);
/// Names of a certificate that are reported.
const MAX_NAMES: usize = 3;

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Its name has an address.
    Dns,
    /// A connection is established.
    Connect,
    /// The other end has shown a certificate for its name, from an issuer that this host trusts.
    Tls,
    /// It has answered a datagram.
    Answer,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Live {
    /// Milliseconds until a connection was established.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<u64>,
    /// Milliseconds from then to the end of TLS's handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ms: Option<u64>,
    /// Names in the other end's certificate, the first ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificate: Vec<String>,
    /// Milliseconds until a datagram was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_ms: Option<u64>,
    /// Where it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<Step>,
    /// Why, or why nothing can be reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Live {
    /// It failed at this step.
    pub fn failed(step: Step, why: impl Into<String>) -> Self {
        Self { failed: Some(step), why: Some(why.into()), ..Self::default() }
    }

    /// Nothing was sent, and why.
    pub fn untried(why: &str) -> Self {
        Self { why: Some(why.to_owned()), ..Self::default() }
    }

    /// Something was reached there, whatever came of it then.
    pub fn has_connected(&self) -> bool {
        self.connect_ms.is_some() || self.answer_ms.is_some()
    }
}

/// What is to be tried.
pub struct ConnectionTest {
    /// A socket that is being connected since then.
    pub socket: OwnedFd,
    /// See `socket`.
    pub since: Instant,
    /// `tcp` or `udp`.
    pub transport: &'static str,
    /// Destination port.
    pub port: u16,
    /// The name for which the other end must have a certificate; an address needs none.
    pub name: Option<String>,
}

/// Follows all of them at once, by number. Must be called outside any runtime.
pub fn follow<K: Copy + Eq + std::hash::Hash + Send + 'static>(
    trials: Vec<(K, ConnectionTest)>,
) -> Result<HashMap<K, Live>> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let tls = Arc::new(config()?);
    Ok(runtime.block_on(async {
        let mut all = JoinSet::new();
        for (number, trial) in trials {
            let tls = Arc::clone(&tls);
            all.spawn(async move { (number, one(trial, tls).await) });
        }
        let mut found = HashMap::new();
        while let Some(done) = all.join_next().await {
            found.extend(done.ok());
        }
        found
    }))
}

/// What this host trusts; the same files as for other programs, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
fn config() -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        log::warn!("{error}");
    }
    roots.add_parsable_certificates(found.certs);
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

async fn one(trial: ConnectionTest, tls: Arc<ClientConfig>) -> Live {
    let done = match trial.transport {
        "tcp" => connection(trial, tls).await,
        _ => datagram(trial).await,
    };
    done.unwrap_or_else(|error| Live::failed(Step::Connect, words(&error)))
}

fn whole(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}

async fn connection(trial: ConnectionTest, tls: Arc<ClientConfig>) -> io::Result<Live> {
    let stream = TcpStream::from_std(PlainTcp::from(trial.socket))?;
    match timeout(PATIENCE, stream.writable()).await {
        Err(_) => return Ok(Live::failed(Step::Connect, format!("nothing came back in {} s", PATIENCE.as_secs()))),
        Ok(ready) => ready?,
    }
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    // Others were begun meanwhile: TCP itself knows how long it took.
    let took = tcp_round_trip(stream.as_fd()).unwrap_or_else(|| trial.since.elapsed());
    let mut live = Live { connect_ms: Some(whole(took)), ..Live::default() };
    let name = trial.name.filter(|_| TLS_PORTS.contains(&trial.port)).and_then(|name| ServerName::try_from(name).ok());
    let Some(name) = name else { return Ok(live) };
    let began = Instant::now();
    match timeout(PATIENCE, TlsConnector::from(tls).connect(name.clone(), stream)).await {
        Err(_) => {
            live.failed = Some(Step::Tls);
            live.why = Some(format!("TLS: nothing came back in {} s", PATIENCE.as_secs()));
        }
        Ok(Err(error)) => {
            live.failed = Some(Step::Tls);
            live.why = Some(format!("TLS: {}", tls_words(&error, &name.to_str())));
        }
        Ok(Ok(stream)) => {
            live.tls_ms = Some(whole(began.elapsed()));
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let own = certificates.first().and_then(|first| webpki::EndEntityCert::try_from(first).ok());
            live.certificate =
                own.iter().flat_map(|own| own.valid_dns_names()).take(MAX_NAMES).map(str::to_owned).collect();
        }
    }
    Ok(live)
}

async fn datagram(trial: ConnectionTest) -> io::Result<Live> {
    let socket = UdpSocket::from_std(PlainUdp::from(trial.socket))?;
    let question = match trial.port {
        DNS => {
            let mut message = Message::query();
            message.add_query(Query::query(Name::root(), RecordType::NS));
            message.to_vec().map_err(io::Error::other)?
        }
        TIME => {
            let mut question = vec![0; TIME_QUESTION.1];
            question[0] = TIME_QUESTION.0;
            question
        }
        _ => return Ok(Live::untried("observer has no question for this UDP port, so it sent nothing")),
    };
    let began = Instant::now();
    socket.send(&question).await?;
    let mut answer = [0; 2048];
    Ok(match timeout(PATIENCE, socket.recv(&mut answer)).await {
        Err(_) => Live::failed(Step::Answer, format!("nothing came back in {} s", PATIENCE.as_secs())),
        Ok(Err(error)) => Live::failed(Step::Answer, words(&error)),
        Ok(Ok(_)) => Live { answer_ms: Some(whole(began.elapsed())), ..Live::default() },
    })
}

/// As an administrator knows it.
pub fn words(error: &io::Error) -> String {
    let of = |words: &str| words.to_owned();
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => of("refused: nothing listens there, or something on the way says so"),
        Some(libc::EPERM) => of("not permitted: something on this host denies it"),
        Some(libc::EHOSTUNREACH) => of("no way there: the next hop does not answer, or something on the way says so"),
        Some(libc::ENETUNREACH) => of("no route leads there"),
        Some(libc::EACCES) => of("prohibited, by a route or by something on the way"),
        _ => error.to_string(),
    }
}

fn tls_words(error: &io::Error, name: &str) -> String {
    let Some(own) = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) else {
        return error.to_string();
    };
    match own {
        TlsError::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => {
            // `DnsName("www.example.com")`
            let plain = |name: &'_ String| name.split('"').nth(1).unwrap_or(name).to_owned();
            let names: Vec<String> = presented.iter().take(MAX_NAMES).map(plain).collect();
            format!("the certificate is not for {name} but for {}: another one answers", names.join(", "))
        }
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "this host does not trust the certificate's issuer: something on the way may answer in its place (TLS inspection)"
                .to_owned()
        }
        TlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "the certificate has expired, or this host's clock is wrong".to_owned()
        }
        TlsError::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "the certificate is not valid yet, or this host's clock is wrong".to_owned()
        }
        TlsError::InvalidMessage(_) => "the other end does not speak TLS".to_owned(),
        other => other.to_string(),
    }
}
