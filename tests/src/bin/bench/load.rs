//! Load for one run: this program starts itself inside the namespace, sends a fixed number of packets and says what
//! that took. The number is fixed and the destination is in a namespace of the bench's own, so it always ends.

use std::{net::UdpSocket, process::Stdio, time::Instant};

use anyhow::{Context, Result, ensure};
use harness::namespace::Namespace;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use serde::{Deserialize, Serialize};

/// What a run took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Spent {
    /// CPU of the sender, nanoseconds a packet.
    pub(crate) cpu_ns: f64,
    /// Wall-clock time, nanoseconds a packet.
    pub(crate) wall_ns: f64,
}

/// The inner half: `bench load ADDRESS PORT PACKETS`.
pub(crate) fn inside(args: &[String]) -> Result<()> {
    let [address, port, packets] = args else { anyhow::bail!("bench load ADDRESS PORT PACKETS") };
    let packets: u32 = packets.parse()?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((address.as_str(), port.parse::<u16>()?))?;
    let (started, before) = (Instant::now(), cpu_ns()?);
    for _ in 0..packets {
        // A drop says EPERM, a closed port ECONNREFUSED: both are what is measured.
        let _ = socket.send(b"x");
    }
    let (wall, cpu) = (started.elapsed().as_nanos() as f64, cpu_ns()? - before);
    let spent = Spent { cpu_ns: cpu / f64::from(packets), wall_ns: wall / f64::from(packets) };
    println!("{}", serde_json::to_string(&spent)?);
    Ok(())
}

/// Runs the inner half inside a namespace.
pub(crate) fn run(namespace: &Namespace, port: u16, packets: u32) -> Result<Spent> {
    let output = namespace
        .command(std::env::current_exe()?)
        .args(["load", "127.0.0.1", &port.to_string(), &packets.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("cannot start the load")?;
    ensure!(output.status.success(), "the load failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn cpu_ns() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 * 1e3)
}
