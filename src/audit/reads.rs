//! What can be read of the store.

use sqlx::{Any, Arguments as _, AssertSqlSafe, Encode, FromRow, Type, any::AnyArguments};
use uuid::Uuid;

use super::{
    Entry, EntryFilter, Head, Order, RollbackFilter, Sequence, Store, StoreError, store::within_deadline,
    time_text,
};
use crate::domain::{key::Namespace, rollback::Rollback};

/// A rollback as it is stored: its record, and the epoch of its holder.
pub(super) type Recorded = (String, i64);

/// Reads a stored rollback. Taking it over moves the epoch and leaves the record as it is.
pub(super) fn read((record, epoch): Recorded) -> Result<Rollback, StoreError> {
    Ok(Rollback { epoch, ..serde_json::from_str(&record)? })
}

/// What a rollback is read with to be shown: its record, the epoch, and the warning that its ownership is not returned.
type Shown = (String, i64, Option<String>);

const SHOWN: &str =
    "SELECT record, epoch, (SELECT warning FROM ownership_returns WHERE rollback = id) FROM rollbacks";

fn show((record, epoch, warning): Shown) -> Result<Rollback, StoreError> {
    let mut rollback = read((record, epoch))?;
    if let Some(warning) = warning {
        rollback.warnings.push(serde_json::from_str(&warning)?);
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
        Self { sql: format!("{sql} WHERE 1 = 1"), arguments: AnyArguments::default() }
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

    async fn rows<T>(self, store: &Store) -> Result<Vec<T>, StoreError>
    where
        T: for<'r> FromRow<'r, sqlx::any::AnyRow> + Send + Unpin,
    {
        // Its parts are constants, its values are bound.
        let query = sqlx::query_as_with(AssertSqlSafe(self.sql), self.arguments);
        in_time(query.fetch_all(&store.database.read)).await
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
        select.push(" ORDER BY id DESC");
        select.limit(limit);
        select.rows::<Shown>(self).await?.into_iter().map(show).collect()
    }

    /// Reads entries, at most `limit`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn entries(
        &self,
        filter: &EntryFilter,
        order: Order,
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
            // A list in SQL has one item at least; no namespace is called "".
            let names = namespaces.iter().map(ToString::to_string).chain([String::new()]);
            let places: Vec<_> = names.map(|name| select.bind(name)).collect();
            select.push(&format!(" AND namespace IN ({})", places.join(", ")));
        }
        match order {
            Order::NewestFirst { before } => {
                select.and("sequence <", before);
                select.push(" ORDER BY sequence DESC");
            }
            Order::OldestFirst { after } => {
                select.and("sequence >", Some(after));
                select.push(" ORDER BY sequence");
            }
        }
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

    /// The namespaces that have entries, and whether of more than denials: those anybody may leave, in whatever
    /// namespaces they like.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn namespaces(&self) -> Result<Vec<(Namespace, bool)>, StoreError> {
        let sql = "SELECT namespace, CAST(MAX(CASE WHEN action = 'rollback.denied' THEN 0 ELSE 1 END) AS BIGINT) FROM audit GROUP BY namespace";
        let query = sqlx::query_as(sql);
        let names: Vec<(String, i64)> = in_time(query.fetch_all(&self.database.read)).await?;
        let parsed = |(name, more): (String, i64)| Some((Namespace::parse(&name).ok()?, more != 0));
        Ok(names.into_iter().filter_map(parsed).collect())
    }
}
