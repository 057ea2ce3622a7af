//! Reads: from the watches, or, where these do not have what is asked for, from the API server.
//!
//! The watches lag, and keep no more than there is room for. What has to be read from the API server then is bounded:
//! so many reads of one asker at a time, and so many of all, so that no asker takes the API server or the memory from
//! the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Cache, ClusterError, Live,
    watch::{Extent, KnownHistory, KnownRevision},
};
use crate::domain::{
    daemonset::{DaemonSet, WatchedDaemonSet},
    key::Key,
    revision::{NoSuchRevision, RevisionRef},
    template::{NotRestorable, Template, TemplateSummary},
};

/// Reads of all askers that are under way at a time. Each holds one object of the API server's, which may take
/// 20 MiB while it is read.
const AT_ONCE: usize = 4;
/// Of which one asker may have so many.
const OF_ONE: usize = 2;
/// Reads of one asker that may wait for their turn.
const WAITING: usize = 16;
/// For a read to have its turn.
const TURN: Duration = Duration::from_secs(10);

/// Reads for callers. Clones share the turns.
#[derive(Clone)]
pub struct Reader {
    cache: Arc<Cache>,
    live: Live,
    turns: Arc<Turns>,
}

impl Reader {
    /// Reads from the watches first.
    #[must_use]
    pub fn new(cache: Arc<Cache>, live: Live) -> Self {
        Self { cache, live, turns: Arc::new(Turns::new(AT_ONCE, OF_ONE)) }
    }

    /// One DaemonSet, all that is kept of it. `asker` is the user whose turn a read takes. What the watch does not show is asked for once (`kubectl apply` and a
    /// read right after it).
    ///
    /// # Errors
    /// [`ClusterError::NotFound`], [`ClusterError::TooManyReads`], and what kept the API server from answering.
    pub async fn daemonset(&self, asker: &str, key: &Key) -> Result<Arc<WatchedDaemonSet>, ClusterError> {
        if let Some((daemonset, Extent::Whole)) = self.cache.index().daemonset(key) {
            return Ok(daemonset);
        }
        let _turn = self.turns.take(asker).await?;
        let read = self.live.daemonset(key).await?;
        Ok(Arc::new(Arc::unwrap_or_clone(read).watched()))
    }

    /// The revisions of a DaemonSet. If the watch is behind what is known of the DaemonSet, they are asked for.
    ///
    /// # Errors
    /// [`ClusterError::TooManyReads`], [`ClusterError::TooLarge`], and what kept the API server from answering where
    /// the watch has nothing to show instead.
    pub async fn history<T: AsRef<TemplateSummary>>(
        &self,
        asker: &str,
        daemonset: &DaemonSet<T>,
    ) -> Result<Arc<KnownHistory>, ClusterError> {
        let kept = self.cache.index().history(daemonset);
        if let Some(kept) = &kept
            && kept.agrees_with(daemonset)
        {
            return Ok(kept.clone());
        }
        match (self.read_history(asker, daemonset).await, kept) {
            // What the watches last showed, and the answer says for how long that is.
            (Err(ClusterError::Unavailable { .. } | ClusterError::Busy { .. }), Some(kept)) => Ok(kept),
            (read, _) => read,
        }
    }

    /// The revisions of a DaemonSet. If one that is asked for is not among those that the watch shows, they are asked
    /// for.
    ///
    /// # Errors
    /// As [`Reader::history`].
    pub async fn history_with<T: AsRef<TemplateSummary>>(
        &self,
        asker: &str,
        daemonset: &DaemonSet<T>,
        wanted: &RevisionRef,
    ) -> Result<Arc<KnownHistory>, ClusterError> {
        let known = self.history(asker, daemonset).await?;
        match known.find(wanted) {
            Err(NoSuchRevision::Unknown) => self.read_history(asker, daemonset).await,
            Ok(_) | Err(NoSuchRevision::Ambiguous(_)) => Ok(known),
        }
    }

    async fn read_history<T: AsRef<TemplateSummary>>(
        &self,
        asker: &str,
        daemonset: &DaemonSet<T>,
    ) -> Result<Arc<KnownHistory>, ClusterError> {
        let _turn = self.turns.take(asker).await?;
        self.live.known_history(daemonset).await.map(Arc::new)
    }

    /// The whole template of a revision of a DaemonSet, or why it holds none. If it is not kept, it is asked for.
    ///
    /// # Errors
    /// [`ClusterError::NotFound`] if the revision is gone, [`ClusterError::TooManyReads`], and what kept the API server
    /// from answering.
    pub async fn template(
        &self,
        asker: &str,
        key: &Key,
        revision: &KnownRevision,
    ) -> Result<Result<Template, NotRestorable>, ClusterError> {
        let summary = match &revision.template {
            Ok(summary) => summary,
            Err(reason) => return Ok(Err(reason.clone())),
        };
        if let Some(template) = self.cache.index().template(key, summary) {
            return Ok(Ok(template));
        }
        let _turn = self.turns.take(asker).await?;
        let read = self.live.revision(key, &revision.controller_revision).await?;
        // One of the same name that was made later is another one.
        if read.uid != revision.uid {
            return Err(ClusterError::NotFound);
        }
        if let Ok(template) = &read.template {
            self.cache.index().keep_template(key, &revision.uid, template);
        }
        Ok(read.template)
    }
}

/// Whose turn it is to read from the API server.
#[derive(Debug)]
struct Turns {
    all: Arc<Semaphore>,
    of_one: usize,
    askers: Mutex<HashMap<String, Share>>,
}

/// What one asker has of them.
#[derive(Debug)]
struct Share {
    turns: Arc<Semaphore>,
    /// Reads that are under way or wait.
    reads: usize,
}

/// A read that is under way. The next one's turn comes when this is dropped.
#[derive(Debug)]
struct Turn<'a> {
    _of_one: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
    _read: Read<'a>,
}

/// A read that is under way or waits.
#[derive(Debug)]
struct Read<'a> {
    turns: &'a Turns,
    asker: String,
}

impl Turns {
    fn new(all: usize, of_one: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), of_one, askers: Mutex::default() }
    }

    fn askers(&self) -> MutexGuard<'_, HashMap<String, Share>> {
        self.askers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn of this asker.
    async fn take(&self, asker: &str) -> Result<Turn<'_>, ClusterError> {
        let (read, turns) = self.enter(asker)?;
        let both = async {
            let of_one = turns.acquire_owned().await?;
            Ok::<_, tokio::sync::AcquireError>((of_one, self.all.clone().acquire_owned().await?))
        };
        match tokio::time::timeout(TURN, both).await {
            Ok(Ok((of_one, of_all))) => Ok(Turn { _of_one: of_one, _of_all: of_all, _read: read }),
            // They are never closed.
            Ok(Err(_)) | Err(_) => Err(ClusterError::TooManyReads),
        }
    }

    fn enter(&self, asker: &str) -> Result<(Read<'_>, Arc<Semaphore>), ClusterError> {
        let mut askers = self.askers();
        let known = askers
            .entry(asker.to_owned())
            .or_insert_with(|| Share { turns: Arc::new(Semaphore::new(self.of_one)), reads: 0 });
        if known.reads >= self.of_one + WAITING {
            return Err(ClusterError::TooManyReads);
        }
        known.reads += 1;
        Ok((Read { turns: self, asker: asker.to_owned() }, known.turns.clone()))
    }
}

impl Drop for Read<'_> {
    fn drop(&mut self) {
        let mut askers = self.turns.askers();
        if let Some(asker) = askers.get_mut(&self.asker) {
            asker.reads -= 1;
            if asker.reads == 0 {
                askers.remove(&self.asker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_asker_can_not_take_the_turns_of_another() {
        let turns = Turns::new(3, 2);
        let greedy = [turns.take("a").await.unwrap(), turns.take("a").await.unwrap()];
        let mut waiting: Vec<_> = (0..WAITING).map(|_| Box::pin(turns.take("a"))).collect();
        for turn in &mut waiting {
            assert!(turn.as_mut().now_or_never().is_none());
        }
        assert!(matches!(turns.take("a").await, Err(ClusterError::TooManyReads)));
        let other = turns.take("b").await.unwrap();
        assert!(turns.take("c").now_or_never().is_none());
        drop(greedy);
        assert!(waiting[0].as_mut().now_or_never().is_some_and(|turn| turn.is_ok()));
        drop((waiting, other));
        assert!(turns.askers().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn no_read_waits_for_ever() {
        let turns = Turns::new(1, 1);
        let _held = turns.take("a").await.unwrap();
        assert!(matches!(turns.take("b").await, Err(ClusterError::TooManyReads)));
    }
}
