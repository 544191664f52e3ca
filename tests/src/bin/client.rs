//! A client that lives for one call: `client once ADDRESS PORT WORD` begins a connection and ends, some milliseconds after
//! it was started; `client many COUNT ADDRESS PORT` starts so many of them, each with its number as WORD; `client mixed
//! COUNT IPV4 IPV6` starts so many to a port each, of which every fourth sends eight datagrams; `client forks COUNT` starts
//! so many that do nothing; `client flood ADDRESS PORT COUNT THREADS`
//! sends so many datagrams by each thread; `client connects ADDRESS PORT COUNT` begins so many connections, each from
//! another port; `client waits ADDRESS PORT COUNT SECONDS` begins so many and keeps them so long; `client scan IPV4 PORT COUNT` sends a datagram to so many addresses, from that one on; `client answer FILE` answers a
//! datagram of a socket that systemd made for it; `client uring ADDRESS PORT` begins a connection and sends a datagram through io_uring, each by a worker
//! thread of the kernel's; `client refuse QUEUE` says `listening` and refuses every packet that netfilter puts into that queue, until it
//! is killed.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::{Child, Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use io_uring::{IoUring, opcode, squeue, types::Fd};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, connect, socket},
};

/// Children that run at the same time.
const AT_ONCE: usize = 8;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("client: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<()> {
    match words {
        ["once", address, port, _word] => once(SocketAddr::new(address.parse()?, port.parse()?)),
        ["nothing", ..] => Ok(()),
        ["many", count, address, port] => {
            many(count.parse()?, |number| vec!["once".into(), (*address).into(), (*port).into(), number])
        }
        ["datagrams", address, port, count] => {
            let client = UdpSocket::bind(if address.contains(':') { "[::]:0" } else { "0.0.0.0:0" })?;
            for _ in 0..count.parse::<u32>()? {
                // Told of every drop at once.
                let _ = client.send_to(b"x", SocketAddr::new(address.parse()?, port.parse()?));
            }
            Ok(())
        }
        ["mixed", count, v4, v6] => many(count.parse()?, |number| {
            let number: usize = number.parse().unwrap_or(0);
            let address = if number.is_multiple_of(2) { *v4 } else { *v6 };
            let kind = if number % 4 == 3 { "datagrams" } else { "once" };
            vec![kind.into(), address.into(), (10_000 + number).to_string(), "8".into()]
        }),
        ["flood", address, port, count, threads] => {
            flood(SocketAddr::new(address.parse()?, port.parse()?), count.parse()?, threads.parse()?)
        }
        ["connects", address, port, count] => {
            connects(SocketAddr::new(address.parse()?, port.parse()?), count.parse()?)
        }
        ["waits", address, port, count, seconds] => {
            waits(SocketAddr::new(address.parse()?, port.parse()?), count.parse()?, seconds.parse()?)
        }
        ["scan", network, port, count] => scan(network.parse()?, port.parse()?, count.parse()?),
        ["answer", done] => answer(done),
        ["uring", address, port] => uring(SocketAddr::new(address.parse()?, port.parse()?)),
        ["refuse", queue] => refuse(queue.parse()?),
        ["forks", count] => many(count.parse()?, |number| vec!["nothing".into(), number]),
        _ => bail!("unknown words {words:?}"),
    }
}

fn once(address: SocketAddr) -> Result<()> {
    begin(address).map(drop)
}

/// Connections that wait for so long: the kernel sends their first packets again.
fn waits(address: SocketAddr, count: u32, seconds: u64) -> Result<()> {
    let sockets: Vec<_> = (0..count).map(|_| begin(address)).collect::<Result<_>>()?;
    thread::sleep(Duration::from_secs(seconds));
    drop(sockets);
    Ok(())
}

fn begin(address: SocketAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let client = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
    match connect(client.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(client),
        Err(error) => Err(error).context("connect"),
    }
}

/// A socket of its own in each thread, as fast as it goes.
fn flood(address: SocketAddr, count: u64, threads: usize) -> Result<()> {
    let one = move || -> Result<()> {
        let client = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        client.connect(address)?;
        for _ in 0..count {
            // Told of every drop at once.
            let _ = client.send(b"x");
        }
        Ok(())
    };
    let running: Vec<_> = (0..threads).map(|_| thread::spawn(one)).collect();
    running.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread failed"))?)
}

fn connects(address: SocketAddr, count: u32) -> Result<()> {
    (0..count).try_for_each(|_| once(address))
}

fn scan(first: Ipv4Addr, port: u16, count: u32) -> Result<()> {
    let client = UdpSocket::bind("0.0.0.0:0")?;
    for number in 0..count {
        let _ = client.send_to(b"x", (Ipv4Addr::from(u32::from(first) + number), port));
    }
    Ok(())
}

/// Answers one datagram of the socket that was inherited from systemd (`sd_listen_fds`), and leaves a file behind.
#[expect(unsafe_code, reason = "an inherited descriptor has nothing but its number")]
fn answer(done: &str) -> Result<()> {
    const FIRST_INHERITED: i32 = 3;
    // SAFETY: systemd passes the socket there, and nobody else takes it.
    let socket = unsafe { UdpSocket::from_raw_fd(FIRST_INHERITED) };
    let (_, from) = socket.recv_from(&mut [0; 16]).context("no question")?;
    // Told of the drop at once.
    let _ = socket.send_to(b"!", from);
    std::fs::write(done, "").context("cannot leave a file")
}

/// A program as a rule with NFQUEUE asks it.
fn refuse(number: u16) -> Result<()> {
    let mut queue = nfq::Queue::open().context("no queue")?;
    queue.bind(number).context("cannot listen to the queue")?;
    println!("listening");
    loop {
        let mut message = queue.recv()?;
        message.set_verdict(nfq::Verdict::Drop);
        queue.verdict(message)?;
    }
}

/// The kernel makes both calls, in a thread of its own.
#[expect(unsafe_code, reason = "the ring takes pointers")]
fn uring(address: SocketAddr) -> Result<()> {
    let mut ring = IoUring::new(4).context("io_uring_setup")?;
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let stream = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
    let datagram = socket(family, SockType::Datagram, SockFlag::empty(), None)?;
    let to = SockaddrStorage::from(address);
    let (pointer, length) = (to.as_ptr().cast(), to.len());
    let connect = opcode::Connect::new(Fd(stream.as_raw_fd()), pointer, length).build();
    let send = opcode::Send::new(Fd(datagram.as_raw_fd()), b"x".as_ptr(), 1).dest_addr(pointer).dest_addr_len(length);
    for entry in [connect, send.build()] {
        // SAFETY: everything that the entry points to outlives the wait for it.
        unsafe { ring.submission().push(&entry.flags(squeue::Flags::ASYNC)) }?;
    }
    ring.submit().context("io_uring_enter")?;
    // The connect would wait for minutes: it has begun when the datagram is done, and some time has passed.
    let mut deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        for done in ring.completion() {
            println!("{}", Errno::from_raw(-done.result()));
            deadline = Instant::now() + Duration::from_millis(300);
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn many(count: usize, args: impl Fn(String) -> Vec<String>) -> Result<()> {
    let mut running: Vec<Child> = Vec::new();
    for number in 0..count {
        if running.len() == AT_ONCE {
            running.remove(0).wait()?;
        }
        let child =
            Command::new("/proc/self/exe").args(args(number.to_string())).spawn().context("cannot start a child")?;
        running.push(child);
    }
    for mut child in running {
        child.wait()?;
    }
    Ok(())
}
