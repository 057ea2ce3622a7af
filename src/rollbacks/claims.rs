//! Who follows what: what a crash left open is taken up again, by the next process or by another replica.

use std::sync::Arc;

use tokio::{sync::watch, time::MissedTickBehavior};
use uuid::Uuid;

use super::{Feed, Followed, Inner, Rollbacks};
use crate::{
    audit::{PULSE, StoreError},
    domain::rollback::Rollback,
    telemetry::causes,
};

impl Rollbacks {
    /// Takes up what is open and nobody follows.
    ///
    /// # Errors
    /// When the store can't be read or written.
    pub async fn resume(&self) -> Result<(), StoreError> {
        for rollback in self.inner.parts.store.claim().await? {
            self.take_up(rollback);
        }
        Ok(())
    }

    /// Shares the work with the other replicas: shows that this one lives, takes over what one that does not
    /// has left, and keeps up with what the others do.
    pub async fn share(self) {
        let mut pulse = tokio::time::interval(PULSE);
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            pulse.tick().await;
            match self.beat().await {
                Ok(()) => failing = false,
                Err(error) if failing => tracing::debug!(error = %causes(&error), "still out of touch"),
                Err(error) => {
                    failing = true;
                    tracing::warn!(error = %causes(&error), "out of touch with the other replicas");
                }
            }
        }
    }

    async fn beat(&self) -> Result<(), StoreError> {
        self.inner.parts.store.renew(&self.inner.known(Followed::Here)).await?;
        self.resume().await?;
        self.inner.keep_up().await
    }

    /// The states of one open rollback as they come; `None` if it has ended or is unknown.
    ///
    /// # Errors
    /// When the store can't be read, which is asked about rollbacks that are not followed here.
    pub async fn watch(&self, id: Uuid) -> Result<Option<watch::Receiver<Arc<Rollback>>>, StoreError> {
        let inner = &self.inner;
        let feed = || inner.open().get(&id).map(|feed| (feed.states.subscribe(), feed.followed));
        if inner.parts.store.is_shared() {
            match inner.parts.store.rollback(id).await {
                Ok(Some(rollback)) => inner.learn(&rollback),
                Ok(None) => {}
                // What is followed here is known without the store.
                Err(_) if matches!(feed(), Some((_, Followed::Here))) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(feed().map(|(states, _)| states))
    }
}

impl Inner {
    /// The open rollbacks that are followed here, or elsewhere.
    fn known(&self, followed: Followed) -> Vec<Uuid> {
        let open = self.open();
        let these = open.iter().filter(|(_, feed)| feed.followed == followed);
        these.map(|(id, _)| *id).collect()
    }

    /// Shows what the others have done since.
    async fn keep_up(&self) -> Result<(), StoreError> {
        let store = &self.parts.store;
        let known = self.known(Followed::Elsewhere);
        let open = store.open_rollbacks().await?;
        open.iter().filter(|open| !open.mine).for_each(|open| self.learn(&open.rollback));
        for ended in known.into_iter().filter(|id| open.iter().all(|open| open.rollback.id != *id)) {
            match store.rollback(ended).await? {
                Some(rollback) => self.learn(&rollback),
                None => drop(self.open().remove(&ended)),
            }
        }
        Ok(())
    }

    /// Shows a state that was read from the store, unless the rollback is followed here, where more is known.
    fn learn(&self, rollback: &Rollback) {
        let mut open = self.open();
        let news = match open.get(&rollback.id) {
            Some(Feed { followed: Followed::Elsewhere, .. }) => true,
            // A later epoch: another replica has taken it over.
            Some(Feed { followed: Followed::Here, states }) => states.borrow().epoch < rollback.epoch,
            None => !rollback.state.is_final(),
        };
        if news {
            self.show(&mut open, rollback, Followed::Elsewhere);
        }
    }

    /// Another replica follows a rollback from now on; or this one does, as of a later epoch.
    pub(super) fn leave(&self, rollback: &Rollback) {
        if let Some(feed) = self.open().get_mut(&rollback.id)
            && feed.states.borrow().epoch <= rollback.epoch
        {
            feed.followed = Followed::Elsewhere;
        }
    }
}
