//! A client that lives for one call: `client once ADDRESS PORT WORD` begins a connection and ends, some milliseconds after
//! it was started; `client many COUNT ADDRESS PORT` starts so many of them, each with its number as WORD; `client mixed
//! COUNT IPV4 IPV6` starts so many to a port each, of which every fourth sends eight datagrams; `client forks COUNT` starts
//! so many that do nothing.

use std::{
    net::{SocketAddr, UdpSocket},
    process::{Child, Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket},
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
        ["forks", count] => many(count.parse()?, |number| vec!["nothing".into(), number]),
        _ => bail!("unknown words {words:?}"),
    }
}

fn once(address: SocketAddr) -> Result<()> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let client = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None)?;
    match connect(std::os::fd::AsRawFd::as_raw_fd(&client), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(()),
        Err(error) => Err(error).context("connect"),
    }
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
