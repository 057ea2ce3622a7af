//! What can be read of the store.

use std::{collections::HashSet, ops::RangeInclusive};

use sqlx::{Any, Arguments as _, AssertSqlSafe, Encode, FromRow, Type, any::AnyArguments};
use uuid::Uuid;

use super::{
    Entry, EntryFilter, Head, Order, RollbackFilter, RollbackScope, Sequence, Store, StoreError,
    store::within_deadline, time_text,
};
use crate::domain::{
    key::{Key, Name, Namespace},
    rollback::{Rollback, Warning},
};

/// How many entries one statement looks through at most.
const WINDOW: Sequence = 20_000;
/// How many namespaces one statement is asked about at most.
const OTHERS: usize = 500;

/// A rollback as it is stored: its record, and the epoch of its holder.
pub(super) type Recorded = (String, i64);

/// Reads a stored rollback. Taking it over moves the epoch and leaves the record as it is.
pub(super) fn read((record, epoch): Recorded) -> Result<Rollback, StoreError> {
    Ok(Rollback { epoch, ..serde_json::from_str(&record)? })
}

/// What a rollback is read with to be shown: its record, the epoch, and the warning that ownership is not returned.
type Shown = (String, i64, Option<String>);

const SHOWN: &str =
    "SELECT record, epoch, (SELECT warning FROM ownership_returns WHERE rollback = id) FROM rollbacks";

fn show((record, epoch, warning): Shown) -> Result<Rollback, StoreError> {
    let mut rollback = read((record, epoch))?;
    if let Some(warning) = warning {
        let warning: Warning = serde_json::from_str(&warning)?;
        // The answer to the patch may have shown already what stays.
        rollback.warnings.retain(|known| known.code != warning.code);
        rollback.warnings.push(warning);
    }
    Ok(rollback)
}

/// Waits for what is read, and not for ever: a server that hangs answers nobody.
pub(super) async fn in_time<T>(reading: impl Future<Output = sqlx::Result<T>>) -> Result<T, StoreError> {
    within_deadline(async { Ok(reading.await?) }).await
}

/// A SELECT whose conditions come one by one. sqlx's own builder writes placeholders that PostgreSQL does
/// not know.
struct Select {
    sql: String,
    arguments: AnyArguments,
}

impl Select {
    fn new(sql: &str) -> Self {
        Self::with(&format!("{sql} WHERE 1 = 1"))
    }

    /// One whose conditions are written out.
    fn with(sql: &str) -> Self {
        Self { sql: sql.to_owned(), arguments: AnyArguments::default() }
    }

    /// Notes a value; returns what stands for it in the text.
    fn bind<'a>(&mut self, value: impl Encode<'a, Any> + Type<Any>) -> String {
        self.arguments.add(value).expect("a text or a number can be bound");
        format!("${}", self.arguments.len())
    }

    /// Adds a condition, such as `name =`, if there is a value for it.
    fn and<'a>(&mut self, condition: &'static str, value: Option<impl Encode<'a, Any> + Type<Any>>) {
        if let Some(value) = value {
            let place = self.bind(value);
            self.push(&format!(" AND {condition} {place}"));
        }
    }

    fn push(&mut self, sql: &str) {
        self.sql.push_str(sql);
    }

    fn limit(&mut self, limit: u32) {
        let place = self.bind(i64::from(limit));
        self.push(&format!(" LIMIT {place}"));
    }

    /// Adds that a rollback is one that a caller sees.
    fn within(&mut self, scope: &RollbackScope) {
        self.push(" AND (");
        self.any_of("namespace", scope.namespaces.iter().map(ToString::to_string));
        if !scope.daemonsets.is_empty() {
            let pair = |key: &Key| {
                let namespace = self.bind(key.namespace.to_string());
                format!("({namespace}, {})", self.bind(key.name.to_string()))
            };
            let pairs: Vec<_> = scope.daemonsets.iter().map(pair).collect();
            self.push(&format!(" OR (namespace, name) IN (VALUES {})", pairs.join(", ")));
        }
        if let Some(asker) = &scope.asker {
            let asker = self.bind(asker.clone());
            // An earlier version, running beside this one, leaves the asker out.
            self.push(&format!(" OR asker = {asker} OR (asker = '' AND actor = {asker})"));
        }
        self.push(")");
    }

    /// Adds that a column is one of these.
    fn any_of(&mut self, column: &'static str, values: impl Iterator<Item = String>) {
        let places: Vec<_> = values.map(|value| self.bind(value)).collect();
        // A list in SQL has one item at least.
        let list = if places.is_empty() { "NULL".to_owned() } else { places.join(", ") };
        self.push(&format!("{column} IN ({list})"));
    }

    async fn rows<T>(self, store: &Store) -> Result<Vec<T>, StoreError>
    where
        T: for<'r> FromRow<'r, sqlx::any::AnyRow> + Send + Unpin,
    {
        // Its parts are constants, its values are bound.
        let query = sqlx::query_as_with(AssertSqlSafe(self.sql), self.arguments);
        in_time(query.fetch_all(&store.database.lists)).await
    }
}

impl Store {
    /// Reads one rollback.
    ///
    /// # Errors
    /// When the database fails; a rollback that does not exist is `None`.
    pub async fn rollback(&self, id: Uuid) -> Result<Option<Rollback>, StoreError> {
        let sql = format!("{SHOWN} WHERE id = $1");
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(id.to_string());
        let recorded: Option<Shown> = in_time(query.fetch_optional(&self.database.read)).await?;
        recorded.map(show).transpose()
    }

    /// Reads rollbacks, newest first, at most `limit`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rollbacks(&self, filter: &RollbackFilter, limit: u32) -> Result<Vec<Rollback>, StoreError> {
        let mut select = Select::new(SHOWN);
        select.and("namespace =", filter.namespace.as_ref().map(ToString::to_string));
        select.and("name =", filter.name.as_ref().map(ToString::to_string));
        select.and("state =", filter.state.map(|state| state.as_str()));
        select.and("actor =", filter.actor.clone());
        select.and("requested_at >=", filter.since.map(time_text));
        select.and("id <", filter.before.map(|id| id.to_string()));
        if let Some(scope) = &filter.within {
            select.within(scope);
        }
        select.push(" ORDER BY id DESC");
        select.limit(limit);
        select.rows::<Shown>(self).await?.into_iter().map(show).collect()
    }

    /// The DaemonSets that rollbacks are of, by namespace and name, at most `limit`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rolled_back(
        &self,
        namespace: Option<&Namespace>,
        name: Option<&Name>,
        limit: u32,
    ) -> Result<Vec<Key>, StoreError> {
        // From one to the next by the index: each costs the same, however many rollbacks it has.
        let mut select = Select::new(
            "WITH RECURSIVE daemonsets(namespace, name) AS (
                SELECT first.namespace, first.name FROM (SELECT namespace, name FROM rollbacks ORDER BY namespace, name LIMIT 1) AS first
                UNION ALL SELECT
                    (SELECT r.namespace FROM rollbacks r WHERE (r.namespace, r.name) > (d.namespace, d.name) ORDER BY r.namespace, r.name LIMIT 1),
                    (SELECT r.name FROM rollbacks r WHERE (r.namespace, r.name) > (d.namespace, d.name) ORDER BY r.namespace, r.name LIMIT 1)
                FROM daemonsets d WHERE d.namespace IS NOT NULL
            ) SELECT namespace, name FROM daemonsets",
        );
        select.push(" AND namespace IS NOT NULL");
        select.and("namespace =", namespace.map(ToString::to_string));
        select.and("name =", name.map(ToString::to_string));
        select.limit(limit);
        let rows: Vec<(String, String)> = select.rows(self).await?;
        let key = |(namespace, name): (String, String)| {
            Some(Key::new(Namespace::parse(&namespace).ok()?, Name::parse(&name).ok()?))
        };
        Ok(rows.into_iter().filter_map(key).collect())
    }

    /// Reads entries, at most `limit`.
    ///
    /// # Errors
    /// When the database fails, or has not found them in time.
    pub async fn entries(
        &self,
        filter: &EntryFilter,
        order: Order,
        limit: u32,
    ) -> Result<Vec<(Sequence, Entry)>, StoreError> {
        within_deadline(self.find_entries(filter, order, limit)).await
    }

    /// Looks through the audit window by window. A look that nobody waits for any more, or that takes too long, ends
    /// with its window; a database is not to be stopped in the middle of a statement.
    async fn find_entries(
        &self,
        filter: &EntryFilter,
        order: Order,
        limit: u32,
    ) -> Result<Vec<(Sequence, Entry)>, StoreError> {
        let bounds = "SELECT (SELECT min(sequence) FROM audit), (SELECT max(sequence) FROM audit)";
        let bounds = sqlx::query_as(bounds).fetch_one(&self.database.lists).await?;
        let (Some(first), Some(last)): (Option<Sequence>, Option<Sequence>) = bounds else {
            return Ok(Vec::new());
        };
        let (mut low, mut high) = match order {
            Order::NewestFirst { before } => (first, before.map_or(last, |before| last.min(before - 1))),
            Order::OldestFirst { after } => (first.max(after.saturating_add(1)), last),
        };
        let mut found = Vec::new();
        while low <= high && found.len() < limit as usize {
            let window = match order {
                Order::NewestFirst { .. } => low.max(high - WINDOW + 1)..=high,
                Order::OldestFirst { .. } => low..=high.min(low + WINDOW - 1),
            };
            match order {
                Order::NewestFirst { .. } => high = window.start() - 1,
                Order::OldestFirst { .. } => low = window.end() + 1,
            }
            let most = limit - u32::try_from(found.len()).unwrap_or(limit);
            found.extend(self.entries_of(filter, order, window, most).await?);
        }
        Ok(found)
    }

    async fn entries_of(
        &self,
        filter: &EntryFilter,
        order: Order,
        window: RangeInclusive<Sequence>,
        limit: u32,
    ) -> Result<Vec<(Sequence, Entry)>, StoreError> {
        let mut select = Select::new("SELECT sequence, entry FROM audit");
        select.and("namespace =", filter.namespace.as_ref().map(ToString::to_string));
        select.and("name =", filter.name.as_ref().map(ToString::to_string));
        select.and("actor =", filter.actor.clone());
        select.and("action =", filter.action.map(|action| action.as_str()));
        select.and("outcome =", filter.outcome.map(|outcome| outcome.as_str()));
        select.and("time >=", filter.since.map(time_text));
        select.and("time <", filter.until.map(time_text));
        if let Some(namespaces) = &filter.within {
            select.push(" AND ");
            select.any_of("namespace", namespaces.iter().map(ToString::to_string));
        }
        select.and("sequence >=", Some(*window.start()));
        select.and("sequence <=", Some(*window.end()));
        select.push(match order {
            Order::NewestFirst { .. } => " ORDER BY sequence DESC",
            Order::OldestFirst { .. } => " ORDER BY sequence",
        });
        select.limit(limit);
        let rows: Vec<(Sequence, String)> = select.rows(self).await?;
        rows.into_iter().map(|(sequence, entry)| Ok((sequence, serde_json::from_str(&entry)?))).collect()
    }

    /// Where the audit ends.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn head(&self) -> Result<Head, StoreError> {
        let query = sqlx::query_as("SELECT sequence, hash FROM audit_head");
        let (sequence, hash) = in_time(query.fetch_one(&self.database.read)).await?;
        Ok(Head { sequence, hash })
    }

    /// The namespaces that have entries of more than denials, and those of `others` that have any, at most `limit` of
    /// the first kind. Denials anybody may leave, in whatever namespaces they like.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn audited_namespaces(
        &self,
        others: &HashSet<Namespace>,
        limit: u32,
    ) -> Result<HashSet<Namespace>, StoreError> {
        // From one to the next by the index: each costs the same, however many entries it has.
        let mut select = Select::new(
            "WITH RECURSIVE audited(namespace) AS (
                SELECT min(namespace) FROM audit WHERE action <> 'rollback.denied' AND namespace > ''
                UNION ALL SELECT
                    (SELECT min(e.namespace) FROM audit e WHERE e.action <> 'rollback.denied' AND e.namespace > a.namespace)
                FROM audited a WHERE a.namespace IS NOT NULL
            ) SELECT namespace FROM audited",
        );
        select.push(" AND namespace IS NOT NULL");
        select.limit(limit);
        let mut names: Vec<(String,)> = select.rows(self).await?;
        let others: Vec<&Namespace> = others.iter().collect();
        for others in others.chunks(OTHERS) {
            let mut select = Select::with("WITH others(namespace) AS (VALUES ");
            let places: Vec<_> =
                others.iter().map(|namespace| format!("({})", select.bind(namespace.to_string()))).collect();
            select.push(&places.join(", "));
            select.push(") SELECT namespace FROM others WHERE EXISTS (SELECT 1 FROM audit WHERE audit.namespace = others.namespace)");
            names.extend(select.rows::<(String,)>(self).await?);
        }
        Ok(names.into_iter().filter_map(|(name,)| Namespace::parse(&name).ok()).collect())
    }
}
