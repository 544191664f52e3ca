//! What the keeper of the store and the process that observes say to each other: messages in postcard, each behind its length.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{entry::Entry, retention::Limits};
use crate::model::Document;

/// A message has no more bytes.
const MAX_MESSAGE: usize = 4 << 20;

/// What the keeper is asked to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// A line.
    Line(Box<Entry>),
    /// What lines refer to.
    Document(Box<Document>),
    /// What is kept from now on.
    Limits(Limits),
    /// The end of the run: its account, JSON, and when it was.
    End(String, i64),
    /// The run ends without an account: it never began to observe, or its output failed. A socket that closes without this and without an end
    /// belongs to a process that was killed.
    Abandon,
}

/// What it answers, and what it has to say by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// What has become of the lines.
    Stored(Progress),
    /// Something for whoever looks after the host, in a sentence.
    Notice(String),
    /// The store is open.
    Open,
    /// It cannot be opened, and why.
    Failed(String),
    /// It was ended by force too often.
    HeldDown,
    /// All is stored that could be.
    Ended,
}

/// What has become of lines, in the order in which they were handed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// So many are on the disk, since the beginning.
    pub stored: u64,
    /// So many were lost, since the beginning.
    pub lost: u64,
    /// Packets that they told of.
    pub lost_packets: u64,
    /// Those that were lost since the last word: the number of the first, counted from 0, and how many.
    pub newly_lost: Vec<(u64, u64)>,
}

/// Sends one message.
pub(super) fn send<T: Serialize>(mut socket: &UnixStream, message: &T) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::other("a message to the store is too long"));
    }
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut whole = length.to_ne_bytes().to_vec();
    whole.extend(bytes);
    socket.write_all(&whole)
}

/// Bytes that have come, and the messages in them.
#[derive(Default)]
pub(super) struct Inbox(Vec<u8>);

impl Inbox {
    /// Takes what can be read at once: false at the end.
    pub(super) fn read(&mut self, mut socket: &UnixStream) -> io::Result<bool> {
        let mut bytes = [0; 64 * 1024];
        match socket.read(&mut bytes) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.0.extend(&bytes[..count]);
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// The next whole message.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some((length, rest)) = self.0.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_ne_bytes(*length) as usize;
        if length > MAX_MESSAGE {
            return Err(io::Error::other("a message is too long"));
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let message = postcard::from_bytes(message).map_err(io::Error::other)?;
        self.0.drain(..4 + length);
        Ok(Some(message))
    }
}
