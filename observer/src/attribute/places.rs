//! What network namespaces are: how to get into them, and whether another observer made them. Asked of the helper and remembered
//! for a moment.

use std::{
    collections::HashMap,
    os::unix::fs::MetadataExt,
    task::Poll,
    time::{Duration, Instant},
};

use super::asking::Asking;
use crate::{
    model::{NetnsPlace, Share},
    privilege::{HostQueries, protocol::Place},
};

/// How long an answer is good for: processes by which a namespace is entered end, and inode numbers are used again.
const FRESH: Duration = Duration::from_secs(5);
/// The same for a namespace of another observer's: what is in it is not reported, and the next one with its number must be.
const HIDDEN: Duration = Duration::from_millis(500);
/// Namespaces that are remembered.
const MAX_PLACES: usize = 256;

/// By the namespace's inode number, which is used again, and its cookie, or 0 where that is not known.
pub(crate) struct Places {
    known: HashMap<(u32, u64), (NetnsPlace, Instant)>,
    /// Observer's own namespace: which is another one is known without the helper.
    own: Option<u32>,
}

impl Default for Places {
    fn default() -> Self {
        let own = std::fs::metadata("/proc/self/ns/net").ok().and_then(|meta| u32::try_from(meta.ino()).ok());
        Self { known: HashMap::new(), own }
    }
}

impl Places {
    /// What is known of a namespace; asked for when that is nothing, or old.
    pub(crate) fn of<E: HostQueries>(
        &mut self,
        netns: u32,
        cookie: u64,
        asking: &mut Asking<'_, E>,
    ) -> Poll<NetnsPlace> {
        let is_other = self.is_other(netns);
        // Observer's own namespace needs no entering.
        if netns == 0 || self.own == Some(netns) {
            return Poll::Ready(NetnsPlace::default());
        }
        let is_fresh = |(place, asked): &(NetnsPlace, Instant)| {
            asked.elapsed() < if place.is_an_observers { HIDDEN } else { FRESH }
        };
        let known = self.known.get(&(netns, cookie));
        if let Some(known) = known.filter(|known| is_fresh(known)) {
            return Poll::Ready(known.0.clone());
        }
        let old = known.map(|(place, _)| place.clone());
        let mut place = match asking.poll(Place { netns, cookie }) {
            Poll::Ready(place) => place,
            Poll::Pending if !asking.is_last => return Poll::Pending,
            // Better than nothing: what it was a moment ago.
            Poll::Pending => return Poll::Ready(old.unwrap_or(NetnsPlace { is_other, ..NetnsPlace::default() })),
        };
        place.is_other |= is_other;
        if self.known.len() >= MAX_PLACES {
            self.known.retain(|_, known| is_fresh(known));
            let eldest = self.known.iter().min_by_key(|(_, (_, asked))| *asked).map(|(key, _)| *key);
            eldest.filter(|_| self.known.len() >= MAX_PLACES).map(|key| self.known.remove(&key));
        }
        self.known.insert((netns, cookie), (place.clone(), Instant::now()));
        Poll::Ready(place)
    }

    /// It is not observer's own.
    pub(crate) fn is_other(&self, netns: u32) -> bool {
        netns != 0 && self.own.is_some_and(|own| own != netns)
    }

    /// On whose account something is looked up in a namespace, for a socket of this user.
    pub(crate) fn share(&self, netns: u32, cookie: u64, uid: Option<u32>) -> Share {
        if !self.is_other(netns) {
            return Share::Host;
        }
        let owner = self.known.get(&(netns, cookie)).and_then(|(place, _)| place.owner);
        match owner.or(uid) {
            // In a container of root's whoever may change its user has many.
            None | Some(0) => Share::Namespace(netns),
            Some(owner) => Share::User(owner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(owner: Option<u32>) -> Places {
        let place = NetnsPlace { owner, is_other: true, ..NetnsPlace::default() };
        Places { known: HashMap::from([((2, 20), (place, Instant::now()))]), own: Some(1) }
    }

    #[test]
    fn whoever_made_the_user_namespace_pays() {
        let uid = Some(100_007);
        assert_eq!(known(Some(1000)).share(1, 10, uid), Share::Host, "rules of observer's own namespace are root's");
        assert_eq!(known(Some(1000)).share(2, 20, uid), Share::User(1000), "whichever of its numbers it takes");
        assert_eq!(known(Some(0)).share(2, 20, uid), Share::Namespace(2), "root in a container has every number");
        assert_eq!(known(None).share(2, 20, uid), Share::User(100_007), "as long as the owner is not known");
        assert_eq!(known(None).share(3, 30, None), Share::Namespace(3));
    }
}
