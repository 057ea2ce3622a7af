//! Cutting what is older than it has to be kept, from the old end of the chain.
//!
//! The entry that says so names the last one that was cut, so that whoever reads the rest knows where it must
//! begin, and that nothing else is missing. Rollbacks are not cut: what DaemonSets show of them stays explained.

use jiff::{SignedDuration, Timestamp};

use super::{Entry, Head, Sequence, Store, StoreError, chain, time_text};

/// Most entries that are cut at once: a rollback may wait behind it.
const BATCH: usize = 2000;
/// How much older than it must be an entry may get, so that not each hour adds an entry about what it cut.
const SLACK: SignedDuration = SignedDuration::from_hours(24);

impl Store {
    /// Cuts entries from before a time, oldest first; says how many. More may be left.
    ///
    /// # Errors
    /// Nothing was cut.
    pub async fn cut(&self, before: Timestamp, now: Timestamp) -> Result<usize, StoreError> {
        let Some(due) = before.checked_sub(SLACK).ok().map(time_text) else { return Ok(0) };
        let limit = time_text(before);
        let cut = self.measured(async {
            let mut transaction = self.database.begin().await?;
            let head = chain::lock_head(self.database.engine, &mut transaction).await?;
            let old: Vec<(Sequence, String, String)> =
                sqlx::query_as("SELECT sequence, hash, time FROM audit ORDER BY sequence LIMIT $1")
                    .bind(i64::try_from(BATCH).unwrap_or(i64::MAX))
                    .fetch_all(&mut *transaction)
                    .await?;
            let count = old.iter().take_while(|(_, _, time)| *time < limit).count();
            let (Some((first, _, oldest)), Some((last, hash, _))) =
                (old.first(), count.checked_sub(1).and_then(|last| old.get(last)))
            else {
                return Ok(None);
            };
            if count < BATCH && *oldest >= due {
                return Ok(None);
            }
            let newest = old.iter().take(count).filter_map(|(_, _, time)| time.parse().ok()).max();
            let end = Head { sequence: *last, hash: hash.clone() };
            sqlx::query("UPDATE audit_start SET sequence = $1, hash = $2")
                .bind(end.sequence)
                .bind(&end.hash)
                .execute(&mut *transaction)
                .await?;
            sqlx::query("DELETE FROM audit WHERE sequence <= $1")
                .bind(end.sequence)
                .execute(&mut *transaction)
                .await?;
            let entry = Entry::of_cut(end, (*first, newest), before, now);
            let head = chain::append(&mut transaction, head, &entry).await?;
            transaction.commit().await?;
            Ok(Some((count, head, entry)))
        });
        let Some((count, head, entry)) = cut.await? else { return Ok(0) };
        self.tell(&head, &entry);
        Ok(count)
    }
}
