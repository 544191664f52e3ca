//! Load for one run: this program starts itself inside the namespace, sends a fixed number of packets and says what
//! that took. The number is fixed and the destination is in a namespace of the bench's own, so it always ends.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use harness::namespace::Namespace;
use nix::{
    errno::Errno,
    sys::{
        resource::{UsageWho, getrusage},
        socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket},
        time::TimeValLike,
    },
};
use serde::{Deserialize, Serialize};

/// A kind of traffic.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// For the table.
    pub(crate) title: &'static str,
    /// One of the words of [`inside`].
    pub(crate) kind: &'static str,
    /// Port that it goes to.
    pub(crate) port: u16,
    /// Packets or connections of one run: about a second.
    pub(crate) packets: u32,
    /// Threads that each send so many.
    pub(crate) threads: u32,
}

/// What a run took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Spent {
    /// CPU of the sender, nanoseconds a packet.
    pub(crate) cpu_ns: f64,
    /// Wall-clock time, nanoseconds a packet.
    pub(crate) wall_ns: f64,
}

/// The inner half: `bench load KIND PORT PACKETS THREADS`.
pub(crate) fn inside(args: &[String]) -> Result<()> {
    let [kind, port, packets, threads] = args else { anyhow::bail!("bench load KIND PORT PACKETS THREADS") };
    let (port, packets, threads): (u16, u32, u32) = (port.parse()?, packets.parse()?, threads.parse()?);
    let send: fn(u16, u32) -> Result<()> = match kind.as_str() {
        "datagrams" => datagrams,
        "destinations" => destinations,
        "firsts" => firsts,
        "owners" => owners,
        "connects" => connects,
        "unconnected" => unconnected,
        "short" => short,
        "bulk" => bulk,
        other => anyhow::bail!("unknown load {other}"),
    };
    let (started, before) = (Instant::now(), cpu_ns()?);
    let running: Vec<_> = (0..threads).map(|_| thread::spawn(move || send(port, packets))).collect();
    for thread in running {
        thread.join().map_err(|_| anyhow::anyhow!("a thread failed"))??;
    }
    let all = f64::from(packets) * f64::from(threads);
    let (wall, cpu) = (started.elapsed().as_nanos() as f64, cpu_ns()? - before);
    println!("{}", serde_json::to_string(&Spent { cpu_ns: cpu / all, wall_ns: wall / all })?);
    Ok(())
}

/// By one connected socket.
fn datagrams(port: u16, packets: u32) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((Ipv4Addr::LOCALHOST, port))?;
    for _ in 0..packets {
        // A drop says EPERM, a closed port ECONNREFUSED: both are what is measured.
        let _ = socket.send(b"x");
    }
    Ok(())
}

/// Each to another of a thousand addresses.
fn destinations(port: u16, packets: u32) -> Result<()> {
    const ADDRESSES: u32 = 1000;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for packet in 0..packets {
        let to = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + packet % ADDRESSES);
        let _ = socket.send_to(b"x", (to, port));
    }
    Ok(())
}

/// Each to an address that no other goes to.
fn firsts(port: u16, packets: u32) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for packet in 0..packets {
        let to = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 2, 0, 1)) + packet);
        let _ = socket.send_to(b"x", (to, port));
    }
    Ok(())
}

/// By so many processes, one after the other.
const OWNERS: u32 = 100;

fn owners(port: u16, packets: u32) -> Result<()> {
    for _ in 0..OWNERS {
        let status = Command::new(std::env::current_exe()?)
            .args(["load", "datagrams", &port.to_string(), &(packets / OWNERS).to_string(), "1"])
            .stdout(Stdio::null())
            .status()?;
        ensure!(status.success(), "an owner failed");
    }
    Ok(())
}

/// To a socket that takes them, by one that is not connected.
fn unconnected(_port: u16, packets: u32) -> Result<()> {
    let receiver = UdpSocket::bind("127.0.0.1:0")?;
    let (to, sender) = (receiver.local_addr()?, UdpSocket::bind("0.0.0.0:0")?);
    let mut buffer = [0; 8];
    for _ in 0..packets {
        sender.send_to(b"x", to)?;
        receiver.recv(&mut buffer)?;
    }
    Ok(())
}

/// Begun and closed at once, each from another port.
fn connects(port: u16, packets: u32) -> Result<()> {
    let to = SockaddrStorage::from(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    for _ in 0..packets {
        let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
        match connect(client.as_raw_fd(), &to) {
            Ok(()) | Err(Errno::EINPROGRESS | Errno::ECONNREFUSED) => {}
            Err(error) => return Err(error).context("connect"),
        }
    }
    Ok(())
}

/// Connections that are accepted and closed.
fn short(_port: u16, packets: u32) -> Result<()> {
    let server = TcpListener::bind("127.0.0.1:0")?;
    let to = server.local_addr()?;
    for _ in 0..packets {
        let client = TcpStream::connect(to)?;
        let (peer, _) = server.accept()?;
        // The server closes first: the ports that wait are its own.
        drop(peer);
        drop(client);
    }
    Ok(())
}

/// One connection, so many blocks of 64 kB.
fn bulk(_port: u16, packets: u32) -> Result<()> {
    const BLOCK: usize = 1 << 16;
    let server = TcpListener::bind("127.0.0.1:0")?;
    let to = server.local_addr()?;
    let reader = thread::spawn(move || -> Result<()> {
        let (mut peer, _) = server.accept()?;
        let mut buffer = vec![0; BLOCK];
        while peer.read(&mut buffer)? > 0 {}
        Ok(())
    });
    let mut client = TcpStream::connect(to)?;
    let block = vec![0; BLOCK];
    for _ in 0..packets {
        client.write_all(&block)?;
    }
    drop(client);
    reader.join().map_err(|_| anyhow::anyhow!("the reader failed"))?
}

/// Runs the inner half inside a namespace.
pub(crate) fn run(namespace: &Namespace, load: &Load, packets: u32) -> Result<Spent> {
    let output = namespace
        .command(std::env::current_exe()?)
        .args(["load", load.kind, &load.port.to_string(), &packets.to_string(), &load.threads.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("cannot start the load")?;
    ensure!(output.status.success(), "the load failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn cpu_ns() -> Result<f64> {
    let mut microseconds = 0;
    for who in [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN] {
        let usage = getrusage(who)?;
        microseconds += usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    }
    Ok(microseconds as f64 * 1e3)
}
