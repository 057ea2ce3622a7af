//! Cutting what is older than it has to be kept, from the old end of the chain.
//!
//! The entry that says so names the last one that was cut, so that whoever reads the rest knows where it must
//! begin, and that nothing else is missing. Rollbacks are not cut: what DaemonSets show of them stays explained.

use jiff::{SignedDuration, Timestamp};

use sqlx::{Any, Transaction};

use super::{Action, Entry, Head, Sequence, Store, StoreError, chain, store::exactly_one, time_text};

/// Most entries that are cut at once: a rollback may wait behind it.
const BATCH: usize = 2000;
/// How much older than it must be an entry may get, so that not each hour adds an entry about what it cut.
const SLACK: SignedDuration = SignedDuration::from_hours(24);

/// Entries by whose times it is judged how old others are.
const NEWEST: i64 = 11;

/// When the newest entries were written: the median of their times, so that a few by a wrong clock count for nothing.
/// Those about prunes are not asked: each would justify the next one.
async fn newest(transaction: &mut Transaction<'_, Any>) -> Result<Option<Timestamp>, StoreError> {
    let sql = "SELECT time FROM audit WHERE action <> $1 ORDER BY sequence DESC LIMIT $2";
    let query = sqlx::query_scalar(sql).bind(Action::Cut.as_str()).bind(NEWEST);
    let mut times: Vec<String> = query.fetch_all(&mut **transaction).await?;
    times.sort_unstable();
    Ok(times.get(times.len() / 2).and_then(|time| time.parse().ok()))
}

impl Store {
    /// Cuts entries from before a time, oldest first; says how many. More may be left.
    ///
    /// Never more than the newest entries justify: the time from `before` to `now` is counted back from them, if they
    /// are older than `now`. So a clock that is ahead does not take what was written by the right one.
    ///
    /// # Errors
    /// Nothing was cut.
    pub async fn cut(&self, before: Timestamp, now: Timestamp) -> Result<usize, StoreError> {
        let kept = now.duration_since(before);
        let cut = self.measured(async {
            let mut transaction = self.database.begin().await?;
            let head = chain::lock_head(self.database.engine, &mut transaction).await?;
            let Some(newest) = newest(&mut transaction).await? else { return Ok(None) };
            let Ok(before) = newest.min(now).checked_sub(kept) else { return Ok(None) };
            let limit = time_text(before);
            let Some(due) = before.checked_sub(SLACK).ok().map(time_text) else { return Ok(None) };
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
            let moved = sqlx::query("UPDATE audit_start SET sequence = $1, hash = $2")
                .bind(end.sequence)
                .bind(&end.hash)
                .execute(&mut *transaction)
                .await?;
            exactly_one(moved)?;
            let deleted = sqlx::query("DELETE FROM audit WHERE sequence <= $1")
                .bind(end.sequence)
                .execute(&mut *transaction)
                .await?;
            if deleted.rows_affected() != count as u64 {
                return Err(StoreError::Altered);
            }
            let entry = Entry::of_cut(end, (*first, newest), before, now);
            self.append_in(&mut transaction, head, &entry).await?;
            transaction.commit().await?;
            Ok(Some((count, entry)))
        });
        let Some((count, entry)) = cut.await? else { return Ok(0) };
        self.tell(&entry);
        Ok(count)
    }
}
