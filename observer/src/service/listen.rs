//! Hears of changes of rules in every namespace that is listened to, as long as somebody lives there.

use std::sync::mpsc::{SyncSender, TrySendError};

use tokio::{
    sync::mpsc::UnboundedReceiver,
    task::JoinSet,
    time::{Duration, sleep},
};

use crate::{
    intake::{commits, ring::Item},
    privilege::Listening,
    sys::watch_readable,
};

/// A program that changes rules does so several times in a row: what is heard within this time is told together.
const GROUP: Duration = Duration::from_millis(50);

/// Listens wherever `begun` says, and ends with its caller.
pub(super) async fn watch(mut begun: UnboundedReceiver<Listening>, queue: SyncSender<Item>) {
    // Ended with this one.
    let mut all = JoinSet::new();
    while let Some(listening) = begun.recv().await {
        all.spawn(hear(listening, queue.clone()));
        // Those that are over.
        while all.try_join_next().is_some() {}
    }
}

async fn hear(listening: Listening, queue: SyncSender<Item>) {
    let netns = listening.netns;
    let both = (watch_readable(listening.socket), watch_readable(listening.resident));
    if let (Ok(mut socket), Ok(mut resident)) = both {
        loop {
            tokio::select! {
                heard = socket.readable_mut() => {
                    let Ok(mut guard) = heard else { break };
                    guard.clear_ready();
                    // At once, for the time is taken there.
                    let mut commits = commits::drain(socket.get_ref(), netns);
                    sleep(GROUP).await;
                    commits.extend(commits::drain(socket.get_ref(), netns));
                    if !commits.is_empty() {
                        put(&queue, Item::Commits(commits)).await;
                    }
                }
                _ = resident.readable_mut() => break,
            }
        }
        let commits = commits::drain(socket.get_ref(), netns);
        if !commits.is_empty() {
            put(&queue, Item::Commits(commits)).await;
        }
    }
    // The socket is closed by now.
    put(&queue, Item::Deaf(netns)).await;
}

/// A full queue is emptied in a moment.
async fn put(queue: &SyncSender<Item>, mut item: Item) {
    while let Err(TrySendError::Full(back)) = queue.try_send(item) {
        item = back;
        sleep(GROUP).await;
    }
}
