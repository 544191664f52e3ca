//! What is done between two batches: old lines go, and the reserve stays.

use std::time::{Duration, Instant};

use super::{
    Keeper, Settings,
    file::{available, empty_log, has_room_for, is_damage, is_log_full, log, set_aside},
    now_ns,
};
use crate::store::{
    age::Age,
    retention,
    schema::{passes, words},
    space::{self, Room},
};

/// While nothing is stored, word that the run goes on is left so often.
const ALIVE: Duration = Duration::from_secs(300);
/// Old lines are looked after so often; while there is much to do, a little after each batch.
const TIDY: Duration = Duration::from_secs(30);
const TIDY_MORE: Duration = Duration::from_millis(100);
/// And so often while lines come.
const TIDY_BESIDE: Duration = Duration::from_secs(2);
/// A store may have so much on a file system that is nearly full, too.
const LEAST: u64 = 4 << 20;
/// It is not nearly full any more when this part more than the rest is left.
const EASED: u64 = 4;
/// More than this part over the limit is too much; then room is made for so long before anything else.
const CROWDED: u64 = 8;
const CROWDED_TIME: Duration = Duration::from_millis(200);

impl Keeper<'_> {
    /// How long nothing needs to be done while no line comes.
    pub(super) fn until_tidy(&self) -> Duration {
        match (self.is_crowded, self.has_more) {
            (true, _) => Duration::ZERO,
            (false, true) => TIDY_MORE,
            (false, false) => TIDY,
        }
    }

    /// Looks whether a batch took more room than there is: what comes in must not be faster than what goes.
    pub(super) fn watch_room(&mut self) {
        let Some(writer) = &self.writer else { return };
        let used = Room::of(&writer.connection).map_or(0, |room| room.used);
        let limit = self.limit();
        // Nor may one share be over its part for long.
        self.has_more |= used > limit || self.tidied.elapsed() > TIDY_BESIDE;
        self.is_crowded = used > limit.saturating_add(limit / CROWDED);
    }

    /// Looks after what is kept, a little at a time; what is to be said of it.
    pub(super) fn tidy(&mut self) -> Option<String> {
        if self.failing.is_some() || self.tidied.elapsed() < self.until_tidy() {
            return None;
        }
        let was_crowded = std::mem::replace(&mut self.is_crowded, false);
        let is_full =
            is_log_full(self.settings) && self.writer.as_ref().is_some_and(|writer| empty_log(writer) == Ok(false));
        if is_full {
            // Somebody reads: what is removed now would only make the log longer.
            (self.tidied, self.has_more) = (Instant::now(), false);
            return None;
        }
        let (tightness, tidied) = (self.watch_file_system(), self.tidy_some(was_crowded));
        // Steps before one that failed are done: texts that were removed have no number any more.
        self.writer.as_mut()?.forget_numbers();
        self.tidied = Instant::now();
        self.has_more = *tidied.as_ref().unwrap_or(&false);
        match tidied {
            Err(error) if is_damage(&error) => {
                self.writer = None;
                Some(set_aside(&self.settings.path, &error).unwrap_or_else(|failed| failed))
            }
            Err(error) if !passes(&error) && !std::mem::replace(&mut self.is_untidy, true) => Some(format!(
                "cannot remove old lines from the store {}: {}; observer retries every 30 seconds",
                self.settings.path.display(),
                words(&error)
            )),
            Err(_) => tightness,
            Ok(_) => {
                self.is_untidy = false;
                tightness
            }
        }
    }

    /// Removes what has to go: true when there is more. Long enough to get below the limit, where the store `was_crowded`.
    fn tidy_some(&mut self, was_crowded: bool) -> rusqlite::Result<bool> {
        let limit = self.limit();
        let Some(writer) = &self.writer else { return Ok(false) };
        let (connection, limits) = (&writer.connection, &self.limits);
        if self.lived.elapsed() > ALIVE {
            writer.live(now_ns())?;
            self.lived = Instant::now();
        }
        let free = Room::of(connection)?.free;
        let age = match &mut self.age {
            Some(age) => age,
            None => self.age.insert(Age::read(connection, now_ns())?),
        };
        let now = age.now(connection, now_ns())?;
        let until = Instant::now() + if was_crowded { CROWDED_TIME } else { Duration::ZERO };
        let has_more = loop {
            let has_more = retention::step(connection, limits, limit, now)?;
            if !has_more || Instant::now() >= until {
                break has_more;
            }
        };
        // Where nothing can be removed, lines are stored all the same.
        self.is_crowded = was_crowded && has_more && Room::of(connection)?.used > limit;
        if !has_more {
            let (path, reserve) = (&self.settings.path, self.settings.reserve);
            space::shrink(connection, reserve)?;
            // New lines have taken its pages. While there is room, others take their place.
            if free.min(log(path)) < reserve / 2 && has_room_for(path, limits.rest.saturating_add(2 * reserve)) {
                space::reserve(connection, reserve, log(path))?;
            }
        }
        Ok(has_more)
    }

    /// Notes whether the file system is nearly full; what is to be said when that changes.
    fn watch_file_system(&mut self) -> Option<String> {
        let room = Room::of(&self.writer.as_ref()?.connection).ok()?;
        let (path, rest) = (self.settings.path.display(), self.limits.rest);
        let left = available(&self.settings.path)?;
        match self.tight_at {
            None if left < rest => {
                // Pages that the file has already are used: those of the reserve.
                self.tight_at = Some((room.used + room.free).max(LEAST));
                Some(format!(
                    "the file system of {path} has less than {} MiB left (--keep-free): the store grows to no more than {} MiB and \
                     removes its oldest lines",
                    rest >> 20,
                    self.limit() >> 20
                ))
            }
            // Where it is near the border, one word is enough.
            Some(_) if left >= rest.saturating_add(rest / EASED) => {
                self.tight_at = None;
                Some(format!(
                    "the file system of {path} has more than {} MiB left again: the store may grow to {} MiB",
                    rest >> 20,
                    self.limit() >> 20
                ))
            }
            _ => None,
        }
    }

    /// Bytes that may be in use. The reserve counts: the file takes no more than was said. On a file system that is nearly full they are no
    /// more than the file had when it came to that.
    fn limit(&self) -> u64 {
        let whole = self.limits.bytes.saturating_sub(self.settings.reserve);
        self.tight_at.map_or(whole, |used| whole.min(used))
    }

    /// Allocates the reserve; what is to be said where that is not possible.
    pub(super) fn reserve(&self) -> Option<String> {
        let writer = self.writer.as_ref()?;
        let Settings { path, limits, reserve, .. } = self.settings;
        let free = Room::of(&writer.connection).map_or(0, |room| room.free);
        // As much for the file as for its log, as far as they do not have it from before.
        let missing = reserve.saturating_sub(free) + reserve.saturating_sub(log(path));
        let failed = if missing > 0 && !has_room_for(path, limits.rest.saturating_add(missing)) {
            format!(
                "the file system has less than {} MiB left, twice the reserve (--reserve) beside what is to stay free (--keep-free)",
                limits.rest.saturating_add(missing) >> 20
            )
        } else {
            space::reserve(&writer.connection, *reserve, log(path)).err().map(|error| words(&error))?
        };
        Some(format!("cannot allocate the reserve for the store {}: {failed}", path.display()))
    }
}
