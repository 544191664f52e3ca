//! Netlink messages as they are, for what is copied without being understood, and for long lists, which are read in large parts.

use std::{
    cell::Cell,
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use netlink_packet_core::{NlaBuffer, NlasIterator};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::{TimeVal, TimeValLike},
};
use serde::{Deserialize, Serialize};

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// `NLM_F_DUMP_INTR`, in what is heard and answered; errors have no such flag.
const INTERRUPTED: u16 = 0x10;
/// `NLM_F_CREATE`.
pub(crate) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub(crate) const APPEND: u16 = 0x800;
/// Bits of an attribute's type that are not its number.
const NESTED: u16 = 0x8000;
const NETWORK_ORDER: u16 = 0x4000;
const NUMBER: u16 = 0x3fff;
/// Whatever is longer is not copied: it is held several times over.
const MAX_LISTED: usize = 32 << 20;
/// Room for what comes at once.
const BUFFER: usize = 1 << 20;
/// The same of single messages.
const SMALL_BUFFER: usize = 32 << 10;
/// Of what comes of itself no more is read at once.
const MAX_AT_ONCE: usize = 16_384;
/// What comes of itself is listened to no longer, however much it is.
const LISTENING: Duration = Duration::from_millis(200);
/// The kernel answers at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// An attribute: its type as it came, and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attribute {
    kind: u16,
    value: Vec<u8>,
}

/// The body of a message: what comes before the attributes, and these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Body {
    pub(crate) fixed: Vec<u8>,
    pub(crate) attributes: Attributes,
}

/// Attributes in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attributes(Vec<Attribute>);

impl Attributes {
    /// Those that bytes are made of; nothing of a value that is no list of attributes.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let whole = NlasIterator::new(bytes).collect::<Result<Vec<NlaBuffer<&[u8]>>, _>>();
        let one = |nla: &NlaBuffer<&[u8]>| Attribute {
            // The buffer takes the marks off.
            kind: nla.kind()
                | if nla.nested_flag() { NESTED } else { 0 }
                | if nla.network_byte_order_flag() { NETWORK_ORDER } else { 0 },
            value: nla.value().to_vec(),
        };
        Self(whole.iter().flatten().map(one).collect())
    }

    /// A value.
    pub(crate) fn get(&self, number: u16) -> Option<&[u8]> {
        self.0.iter().find(|attribute| attribute.kind & NUMBER == number).map(|attribute| attribute.value.as_slice())
    }

    /// A value that is a list.
    pub(crate) fn list(&self, number: u16) -> Self {
        self.get(number).map(Self::parse).unwrap_or_default()
    }

    /// All values, each as a list.
    pub(crate) fn lists(&self) -> impl Iterator<Item = Self> {
        self.0.iter().map(|attribute| Self::parse(&attribute.value))
    }

    /// A number in network byte order.
    pub(crate) fn number(&self, number: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(number)?.try_into().ok()?))
    }

    /// The same, of eight bytes.
    pub(crate) fn long(&self, number: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.get(number)?.try_into().ok()?))
    }

    /// A text that ends with a zero, or does not.
    pub(crate) fn text(&self, number: u16) -> Option<String> {
        let bytes = self.get(number)?;
        Some(String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next()?).into_owned())
    }

    /// Adds one, or takes its place.
    pub(crate) fn set(&mut self, number: u16, value: Vec<u8>) {
        match self.0.iter_mut().find(|attribute| attribute.kind & NUMBER == number) {
            Some(attribute) => attribute.value = value,
            None => self.0.push(Attribute { kind: number, value }),
        }
    }

    /// The same of a list.
    pub(crate) fn set_list(&mut self, number: u16, list: &Self) {
        self.0.retain(|attribute| attribute.kind & NUMBER != number);
        self.0.push(Attribute { kind: number | NESTED, value: list.bytes() });
    }

    /// The same where it stands already, in its place.
    pub(crate) fn put_list(&mut self, number: u16, list: &Self) {
        if let Some(own) = self.0.iter_mut().find(|attribute| attribute.kind & NUMBER == number) {
            own.value = list.bytes();
        }
    }

    /// It is marked as a list.
    pub(crate) fn is_list(&self, number: u16) -> bool {
        self.0.iter().any(|attribute| attribute.kind & NUMBER == number && attribute.kind & NESTED != 0)
    }

    /// The same with the mark that its values are in network byte order.
    pub(crate) fn in_network_order(&self) -> Self {
        let marked = |attribute: &Attribute| Attribute { kind: attribute.kind | NETWORK_ORDER, ..attribute.clone() };
        Self(self.0.iter().map(marked).collect())
    }

    /// A list of lists.
    pub(crate) fn elements(lists: &[Self]) -> Self {
        Self::lists_of(1, lists)
    }

    /// The same, each with that number.
    pub(crate) fn lists_of(number: u16, lists: &[Self]) -> Self {
        Self(lists.iter().map(|list| Attribute { kind: number | NESTED, value: list.bytes() }).collect())
    }

    /// Those texts of a list of names that are wanted, and whatever else there is.
    pub(crate) fn names(&self, number: u16, wanted: impl Fn(&str) -> bool) -> Self {
        let is_wanted = |attribute: &Attribute| {
            let name = attribute.value.split(|byte| *byte == 0).next().unwrap_or_default();
            attribute.kind & NUMBER != number || wanted(&String::from_utf8_lossy(name))
        };
        Self(self.0.iter().filter(|attribute| is_wanted(attribute)).cloned().collect())
    }

    /// There is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those with such numbers.
    pub(crate) fn only(&self, numbers: &[u16]) -> Self {
        Self(self.0.iter().filter(|attribute| numbers.contains(&(attribute.kind & NUMBER))).cloned().collect())
    }

    /// Those without.
    pub(crate) fn without(&self, numbers: &[u16]) -> Self {
        Self(self.0.iter().filter(|attribute| !numbers.contains(&(attribute.kind & NUMBER))).cloned().collect())
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Attribute { kind, value } in &self.0 {
            bytes.extend((value.len() as u16 + 4).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }
}

impl Body {
    /// One that begins so.
    pub(crate) fn new(fixed: &[u8]) -> Self {
        Self { fixed: fixed.to_vec(), attributes: Attributes::default() }
    }

    /// With these attributes instead.
    pub(crate) fn with(&self, attributes: Attributes) -> Self {
        Self { fixed: self.fixed.clone(), attributes }
    }
}

/// A socket in the network namespace of the thread that made it.
pub(crate) struct Netlink {
    socket: Socket,
    /// Bytes before the attributes.
    fixed: usize,
    sequence: u32,
    /// Bytes that may still be listed.
    room: Cell<usize>,
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A message on its way.
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) body: &'a Body,
}

impl Netlink {
    /// A socket of that protocol, whose bodies begin with so many bytes.
    pub(crate) fn open(protocol: isize, fixed: usize) -> Result<Self> {
        let mut socket = Socket::new(protocol).context("cannot make a netlink socket")?;
        socket.bind(&SocketAddr::new(0, 0)).context("cannot bind a netlink socket")?;
        setsockopt(&socket, sockopt::RcvBuf, &(8 * BUFFER))?;
        setsockopt(&socket, sockopt::SndBuf, &(8 * BUFFER))?;
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &(32 * BUFFER));
        let _ = setsockopt(&socket, sockopt::SndBufForce, &(64 * BUFFER));
        let netlink = Self { socket, fixed, sequence: 0, room: Cell::new(MAX_LISTED) };
        netlink.set_patience(PATIENCE)?;
        Ok(netlink)
    }

    /// Lists no more than so many bytes.
    pub(crate) fn limit(&self, bytes: usize) {
        self.room.set(self.room.get().min(bytes));
    }

    /// Listens to a group, for so long at a time.
    pub(crate) fn listen(&mut self, group: u32, patience: Duration) -> Result<()> {
        self.socket.add_membership(group).context("cannot listen")?;
        self.set_patience(patience)
    }

    fn set_patience(&self, patience: Duration) -> Result<()> {
        let time = TimeVal::microseconds(i64::try_from(patience.as_micros())?);
        Ok(setsockopt(&self.socket, sockopt::ReceiveTimeout, &time)?)
    }

    fn message(&mut self, message: &Message<'_>, flags: u16) -> Vec<u8> {
        self.sequence += 1;
        let mut bytes = vec![0; HEADER];
        bytes.extend(&message.body.fixed);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(message.body.attributes.bytes());
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&message.kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | message.flags | REQUEST).to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        bytes
    }

    /// Messages of one datagram: their types and bodies, an error's number in place of the body.
    fn receive(&self, each: impl FnMut(u16, &[u8]) -> Result<()>) -> Result<bool> {
        self.received(0, each)
    }

    /// The same of what is there.
    fn receive_now(&self, each: impl FnMut(u16, &[u8]) -> Result<()>) -> Result<bool> {
        self.received(libc::MSG_DONTWAIT, each)
    }

    fn received(&self, flags: i32, mut each: impl FnMut(u16, &[u8]) -> Result<()>) -> Result<bool> {
        // Only lists come in large parts.
        let mut buffer = bytes::BytesMut::with_capacity(if flags == 0 { BUFFER } else { SMALL_BUFFER });
        match self.socket.recv(&mut buffer, flags) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("cannot read from netlink"),
        }
        let mut rest = &buffer[..];
        while rest.len() >= HEADER {
            let length = u32::from_ne_bytes(rest[..4].try_into()?) as usize;
            ensure!((HEADER..=rest.len()).contains(&length), "a netlink message is cut short");
            let flags = u16::from_ne_bytes(rest[6..8].try_into()?);
            ensure!(flags & INTERRUPTED == 0, "a list changed while it was read");
            each(u16::from_ne_bytes(rest[4..6].try_into()?), &rest[HEADER..length])?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(true)
    }

    /// Everything of a kind; nothing where the kernel does not know the question.
    pub(crate) fn dump(&mut self, kind: u16, body: &Body) -> Result<Vec<Body>> {
        let (mut found, mut room, fixed) = (Vec::new(), self.room.get(), self.fixed);
        self.dump_each(kind, body, |bytes| {
            room = room.saturating_sub(bytes.len());
            ensure!(room > 0, "the list is too long to be copied");
            found.push(parse(bytes, fixed));
            Ok(())
        })?;
        self.room.set(room);
        Ok(found)
    }

    /// Hands over everything of a kind, each as its bytes; nothing where the kernel does not know the question.
    pub(crate) fn dump_each(
        &mut self,
        kind: u16,
        body: &Body,
        mut each: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let question = self.message(&Message { kind, flags: 0, body }, DUMP);
        self.socket.send(&question, 0).context("cannot ask by netlink")?;
        let mut done = false;
        while !done {
            let came = self.receive(|kind, bytes| {
                match kind {
                    NLMSG_DONE if matches!(error(bytes), 0 | libc::EBADMSG) => done = true,
                    NLMSG_DONE | NLMSG_ERROR => match error(bytes) {
                        // The kernel has none of that kind.
                        libc::EOPNOTSUPP => done = true,
                        number => {
                            return Err(std::io::Error::from_raw_os_error(number)).context("netlink refuses a list");
                        }
                    },
                    _ => each(bytes)?,
                }
                Ok(())
            })?;
            ensure!(came, "the kernel does not answer");
        }
        Ok(())
    }

    /// One answer to a question; nothing where the kernel has none.
    pub(crate) fn get(&mut self, kind: u16, body: &Body) -> Result<Option<Body>> {
        let question = self.message(&Message { kind, flags: 0, body }, 0);
        self.socket.send(&question, 0).context("cannot ask by netlink")?;
        let mut answer = None;
        let came = self.receive(|kind, bytes| match (kind, error(bytes)) {
            (NLMSG_ERROR, libc::ENOENT) => Ok(()),
            (NLMSG_ERROR, number) => {
                Err(std::io::Error::from_raw_os_error(number)).context("netlink refuses a question")
            }
            _ => {
                answer = Some(bytes.to_vec());
                Ok(())
            }
        })?;
        ensure!(came, "the kernel does not answer");
        Ok(answer.map(|bytes| parse(&bytes, self.fixed)))
    }

    /// Sends messages one after the other; those that the kernel refuses, by their place, with its error.
    pub(crate) fn each<'a>(&mut self, messages: impl IntoIterator<Item = Message<'a>>) -> Result<Vec<(usize, i32)>> {
        let mut refused = Vec::new();
        for (index, message) in messages.into_iter().enumerate() {
            let bytes = self.message(&message, ACK);
            self.socket.send(&bytes, 0).context("cannot send by netlink")?;
            let mut answered = false;
            while !answered {
                let came = self.receive(|kind, bytes| {
                    if kind == NLMSG_ERROR {
                        answered = true;
                        if error(bytes) != 0 {
                            refused.push((index, error(bytes)));
                        }
                    }
                    Ok(())
                })?;
                ensure!(came, "the kernel does not answer");
            }
        }
        Ok(refused)
    }

    /// Sends all of them as one: everything is done, or nothing; then the messages that the kernel refuses, by their place, with
    /// its error. Of what follows from another refusal there may be more.
    pub(crate) fn batch(
        &mut self,
        begin: &Message<'_>,
        messages: &[Message<'_>],
        end: &Message<'_>,
    ) -> Result<Vec<(usize, i32)>> {
        // Of nothing there is no answer.
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        // An error then does not come with the whole message.
        let _ = self.socket.set_cap_ack(true);
        let mut bytes = self.message(begin, 0);
        let first = self.sequence + 1;
        // The last one is answered when all is done; an end of batches is only by newer kernels.
        for (index, message) in messages.iter().enumerate() {
            bytes.extend(self.message(message, if index + 1 == messages.len() { ACK } else { 0 }));
        }
        bytes.extend(self.message(end, 0));
        self.socket.send(&bytes, 0).context("cannot send by netlink")?;
        let (mut answered, mut refused) = (false, Vec::new());
        let mut one = |kind: u16, bytes: &[u8]| {
            if kind != NLMSG_ERROR {
                return Ok(());
            }
            answered = true;
            if error(bytes) != 0 {
                let sequence = bytes.get(12..16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
                let index = sequence.wrapping_sub(first) as usize;
                ensure!(index < messages.len(), "the kernel refuses a batch of messages");
                refused.push((index, error(bytes)));
            }
            Ok(())
        };
        ensure!(self.receive(&mut one)?, "the kernel does not answer");
        // All answers are there when the first one is.
        while self.receive_now(&mut one)? {}
        ensure!(answered, "the kernel does not answer");
        Ok(refused)
    }

    /// Throws away what came before.
    pub(crate) fn drain(&self) {
        let mut buffer = bytes::BytesMut::with_capacity(BUFFER);
        let mut count = 0;
        while count < MAX_AT_ONCE && self.socket.recv(&mut buffer, libc::MSG_DONTWAIT).is_ok() {
            buffer.clear();
            count += 1;
        }
    }

    /// What has come of itself so far.
    pub(crate) fn came(&self) -> Result<Vec<(u16, Body)>> {
        let mut all = Vec::new();
        let fixed = self.fixed;
        while all.len() < MAX_AT_ONCE
            && self.receive_now(|kind, bytes| {
                all.push((kind, parse(bytes, fixed)));
                Ok(())
            })?
        {}
        Ok(all)
    }

    /// What comes of itself until nothing does for a while, or `enough` says so.
    pub(crate) fn heard(&self, mut enough: impl FnMut(&[(u16, Body)]) -> bool) -> Result<Vec<(u16, Body)>> {
        let mut all = Vec::new();
        let deadline = Instant::now() + LISTENING;
        while !enough(&all) && Instant::now() < deadline {
            let mut bodies = Vec::new();
            let came = self.receive(|kind, bytes| {
                bodies.push((kind, bytes.to_vec()));
                Ok(())
            })?;
            all.extend(bodies.iter().map(|(kind, bytes)| (*kind, parse(bytes, self.fixed))));
            if !came {
                break;
            }
        }
        Ok(all)
    }
}

/// A body that begins with so many bytes before its attributes.
fn parse(bytes: &[u8], fixed: usize) -> Body {
    let fixed = fixed.min(bytes.len());
    let attributes = bytes.get(fixed.next_multiple_of(4)..).map(Attributes::parse).unwrap_or_default();
    Body { fixed: bytes[..fixed].to_vec(), attributes }
}

/// The number in an error message; 0 is an acknowledgement.
fn error(bytes: &[u8]) -> i32 {
    bytes.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(libc::EBADMSG, |bytes| -i32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_out_as_they_went_in() {
        let mut inner = Attributes::default();
        inner.set(1, b"name\0".to_vec());
        let mut all = Attributes::default();
        all.set(3, 7u32.to_be_bytes().to_vec());
        all.set_list(2, &inner);
        all.set(5, vec![1]);
        let again = Attributes::parse(&all.bytes());
        assert_eq!(again, all);
        assert_eq!((again.number(3), again.list(2).text(1).as_deref()), (Some(7), Some("name")));
        assert_eq!(again.only(&[3]).without(&[3]), Attributes::default());
        assert_eq!(Attributes::parse(&[9, 0, 1]), Attributes::default());
    }
}
