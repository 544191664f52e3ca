//! Two namespaces joined by a cable: a client, which is observed, and a server.

use std::process::{Child, Stdio};

use anyhow::{Context, Result};

use crate::{namespace::Namespace, wait_for};

/// The server's addresses on the cable.
pub const SERVER_V4: &str = "10.9.0.2";
/// See [`SERVER_V4`].
pub const SERVER_V6: &str = "fd00:9::2";
/// Addresses "on the internet", behind the server.
pub const FAR_V4: &str = "203.0.113.10";
/// See [`FAR_V4`].
pub const FAR_V6: &str = "2001:db8:1::10";
/// The client's address.
pub const CLIENT_V4: &str = "10.9.0.1";

/// The client's interface.
pub const CLIENT_INTERFACE: &str = "eth0";

/// A client and a server.
pub struct Lab {
    /// Where the firewall under test is.
    pub client: Namespace,
    /// The other end.
    pub server: Namespace,
}

impl Lab {
    /// Joins two new namespaces, with addresses and routes of both families and neighbours that need no discovery.
    pub fn new() -> Result<Self> {
        let (client, server) = (Namespace::new()?, Namespace::new()?);
        client.ip(&[&format!(
            "link add {CLIENT_INTERFACE} address 02:00:00:00:00:01 type veth peer name eth0 address 02:00:00:00:00:02 netns {}",
            server.pid()
        )])?;
        client.ip(&[
            "addr add 10.9.0.1/24 dev eth0",
            "addr add fd00:9::1/64 dev eth0 nodad",
            "link set eth0 up",
            "neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev eth0",
            "neigh add fd00:9::2 lladdr 02:00:00:00:00:02 dev eth0",
            "route add default via 10.9.0.2",
            "route add default via inet6 fd00:9::2",
        ])?;
        // In a new namespace nobody may have a ping socket.
        client.run("sh", &["-c", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"])?;
        server.ip(&[
            "addr add 10.9.0.2/24 dev eth0",
            "addr add fd00:9::2/64 dev eth0 nodad",
            "addr add 203.0.113.10/32 dev lo",
            "addr add 2001:db8:1::10/128 dev lo nodad",
            "link set eth0 up",
            "neigh add 10.9.0.1 lladdr 02:00:00:00:00:01 dev eth0",
            "neigh add fd00:9::1 lladdr 02:00:00:00:00:01 dev eth0",
        ])?;
        Ok(Self { client, server })
    }

    /// A real web server on the other end, both families.
    pub fn web_server(&self, port: u16) -> Result<Server> {
        let child = self
            .server
            .command("python3")
            .args(["-I", "-m", "http.server", "--bind", "::", &port.to_string()])
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start a web server")?;
        let server = Server(child);
        wait_for("the web server", || {
            let listening = self.server.run("cat", &["/proc/net/tcp6"])?;
            Ok(listening.contains(&format!(":{port:04X} ")).then_some(()))
        })?;
        Ok(server)
    }
}

/// A server process; ends when dropped.
pub struct Server(pub Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
