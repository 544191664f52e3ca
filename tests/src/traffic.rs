//! Traffic of every kind, by a small Python program: a real client whose calls are in plain sight.

use std::{
    fs::File,
    io::{Seek, Write},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{namespace::Namespace, wait_for};

/// The program.
const SCRIPT: &str = include_str!("../fixtures/traffic.py");

/// The program as a file to read from: on standard input, so that it is no argument of its process.
pub fn script() -> Result<File> {
    let mut file = tempfile::tempfile().context("cannot make a temporary file")?;
    file.write_all(SCRIPT.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// A finished client.
pub struct Client {
    /// Its process id.
    pub pid: u32,
    /// What it printed: one word for each packet or call.
    pub said: String,
}

/// `traffic.py` with ARGS inside a namespace.
pub fn command(namespace: &Namespace, args: &[&str]) -> Result<Command> {
    let mut command = namespace.command("python3");
    command.args(["-IS", "-"]).args(args).stdin(script()?).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// Runs it to its end.
pub fn run(namespace: &Namespace, args: &[&str]) -> Result<Client> {
    finish(command(namespace, args)?.spawn().context("cannot start the client")?)
}

/// Waits for its end.
pub fn finish(child: Child) -> Result<Client> {
    let pid = child.id();
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "the client failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(Client { pid, said: String::from_utf8_lossy(&output.stdout).trim().to_owned() })
}

/// Waits until so many connections of a namespace wait for their first answer and have sent their SYN again.
pub fn until_sent_again(namespace: &Namespace, connections: usize) -> Result<()> {
    const SYN_SENT: &str = "02";
    wait_for("a SYN that is sent again", || {
        let tables = namespace.table("tcp")? + &namespace.table("tcp6")?;
        let sent_again = |row: &&str| {
            // sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt …
            let fields: Vec<&str> = row.split_whitespace().collect();
            fields.get(3) == Some(&SYN_SENT)
                && fields.get(6).is_some_and(|number| number.contains(|digit| digit != '0'))
        };
        Ok((tables.lines().filter(sent_again).count() >= connections).then_some(()))
    })
}
