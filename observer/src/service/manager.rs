//! The service manager that started this process: it hears when observing has begun, that it goes on, and when it ends (`sd_notify(3)`).

use std::{
    env,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    process,
    sync::Arc,
    time::Duration,
};

/// Where it listens, if there is one.
#[derive(Clone, Default)]
pub struct Manager {
    /// Connected at once: later this process may not make sockets.
    socket: Option<Arc<UnixDatagram>>,
    /// See [`Self::watchdog`].
    watchdog: Option<Duration>,
}

impl Manager {
    /// As the environment tells.
    pub fn of_environment() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET").and_then(|path| {
            let socket = UnixDatagram::unbound().ok()?;
            let name = path.to_str().and_then(|path| path.strip_prefix('@'));
            match name {
                Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name).ok()?).ok()?,
                None => socket.connect(&path).ok()?,
            }
            Some(Arc::new(socket))
        });
        let number = |name: &str| env::var(name).ok()?.parse::<u64>().ok();
        let is_meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|_| is_meant).map(|micros| Duration::from_micros(micros) / 2);
        Self { socket, watchdog }
    }

    /// There is one.
    pub fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// Says something, such as `READY=1`.
    pub fn tell(&self, what: &str) {
        if let Some(socket) = &self.socket {
            let _ = socket.send(what.as_bytes());
        }
    }

    /// How often it is to hear something, twice in the time after which it would end this process.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }
}
