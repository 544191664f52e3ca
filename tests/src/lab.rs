//! Two namespaces joined by a cable: a client, which is observed, and a server.

use std::{
    process::{Child, Stdio},
    sync::atomic::{AtomicU8, Ordering},
};

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

/// Groups that may have ping sockets.
const EVERYBODY: &str = "0 2147483647";

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
        Self::join(Namespace::new()?, Namespace::new()?)
    }

    /// The same with two that are there.
    pub fn join(client: Namespace, server: Namespace) -> Result<Self> {
        client.ip(&[
            &format!(
                "link add {CLIENT_INTERFACE} address 02:00:00:00:00:01 type veth peer name eth0 address 02:00:00:00:00:02 \
                 netns {}",
                server.pid()
            ),
            "addr add 10.9.0.1/24 dev eth0",
            "addr add fd00:9::1/64 dev eth0 nodad",
            "link set eth0 up",
            "neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev eth0",
            "neigh add fd00:9::2 lladdr 02:00:00:00:00:02 dev eth0",
            "route add default via 10.9.0.2",
            "route add default via inet6 fd00:9::2",
        ])?;
        // In a new namespace nobody may have a ping socket.
        for namespace in [&client, &server] {
            namespace.set("ipv4/ping_group_range", EVERYBODY)?;
        }
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
        Self::serve(&self.server, port)
    }

    /// The same in any namespace.
    pub fn serve(namespace: &Namespace, port: u16) -> Result<Server> {
        let child = namespace
            .command("python3")
            .args(["-IS", "-m", "http.server", "--bind", "::", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start a web server")?;
        let server = Server(child);
        wait_for("the web server", || Ok(namespace.table("tcp6")?.contains(&format!(":{port:04X} ")).then_some(())))?;
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

/// How a container is plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plug {
    /// By a veth that the host routes to, as Calico and Cilium do.
    Veth,
    /// By a veth into a bridge, as Docker and Podman do.
    Bridge,
}

/// A host that forwards for two containers to a server outside.
pub struct Containers {
    /// The host, where the firewall under test is.
    pub host: Namespace,
    /// The containers.
    pub containers: [Namespace; 2],
    /// Their IPv4 addresses. Every lab has a network of its own: equal addresses behind two hosts on one kernel would be
    /// as equal to the program under test.
    pub addresses: [String; 2],
    /// The host's address on their side.
    pub gateway: String,
    /// Outside; it has [`FAR_V4`] and [`FAR_V6`].
    pub server: Namespace,
}

impl Containers {
    /// Plugs two containers into a new host.
    pub fn new(plug: Plug) -> Result<Self> {
        static NETWORKS: AtomicU8 = AtomicU8::new(0);
        let network = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let (v4, v6) = (format!("10.{}.0", 100 + network % 100), format!("fd17:{network}:"));
        let lab = Lab::new()?;
        let (host, server) = (lab.client, lab.server);
        server.ip(&[&format!("route add {v4}.0/24 via 10.9.0.1"), &format!("route add {v6}:/64 via fd00:9::1")])?;
        host.set("ipv4/ip_forward", "1")?;
        host.set("ipv6/conf/all/forwarding", "1")?;
        host.ip(&["route replace default via 10.9.0.2", "route replace default via inet6 fd00:9::2"])?;
        if plug == Plug::Bridge {
            host.ip(&[
                "link add docker0 address 02:00:00:00:01:00 type bridge forward_delay 0",
                &format!("addr add {v4}.1/24 dev docker0"),
                &format!("addr add {v6}:1/64 dev docker0 nodad"),
                "link set docker0 up",
            ])?;
        }
        let containers = [Self::container(&host, plug, &v4, &v6, 2)?, Self::container(&host, plug, &v4, &v6, 3)?];
        let addresses = [format!("{v4}.2"), format!("{v4}.3")];
        Ok(Self { host, containers, addresses, gateway: format!("{v4}.1"), server })
    }

    fn container(host: &Namespace, plug: Plug, net4: &str, net6: &str, number: u8) -> Result<Namespace> {
        let container = Namespace::new()?;
        let (v4, v6, outer) = (format!("{net4}.{number}"), format!("{net6}:{number}"), format!("veth{number}"));
        let mac = format!("02:00:00:00:01:{number:02}");
        host.ip(&[&format!(
            "link add {outer} address 02:00:00:00:02:{number:02} type veth peer name eth0 address {mac} netns {}",
            container.pid()
        )])?;
        let gateway = match plug {
            Plug::Veth => {
                host.ip(&[
                    &format!("link set {outer} up"),
                    &format!("route add {v4}/32 dev {outer}"),
                    &format!("route add {v6}/128 dev {outer}"),
                    &format!("neigh add {v4} lladdr {mac} dev {outer}"),
                    &format!("neigh add {v6} lladdr {mac} dev {outer}"),
                ])?;
                if number == 2 {
                    host.ip(&[
                        &format!("addr add {net4}.1/32 dev lo"),
                        &format!("addr add {net6}:1/128 dev lo nodad"),
                    ])?;
                }
                format!("02:00:00:00:02:{number:02}")
            }
            Plug::Bridge => {
                host.ip(&[&format!("link set {outer} master docker0 up")])?;
                "02:00:00:00:01:00".to_owned()
            }
        };
        container.ip(&[
            &format!("addr add {v4}/24 dev eth0"),
            &format!("addr add {v6}/64 dev eth0 nodad"),
            "link set eth0 up",
            &format!("neigh add {net4}.1 lladdr {gateway} dev eth0"),
            &format!("neigh add {net6}:1 lladdr {gateway} dev eth0"),
            &format!("route add default via {net4}.1"),
            &format!("route add default via inet6 {net6}:1"),
        ])?;
        container.set("ipv4/ping_group_range", EVERYBODY)?;
        Ok(container)
    }
}
