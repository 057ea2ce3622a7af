//! Tables that are not what rollbackd made: the verifier finds them, and rollbackd makes no rollback on them.

use std::time::Duration;

use rollbackd::{
    audit::{Entry, EntryFilter, Order, Store, StoreError, StoreUrl},
    telemetry::{Metrics, causes},
    verifier::{Checks, Report, verify_store},
};
use serde_json::json;
use sqlx::{AnyConnection, Connection as _, any::install_default_drivers};

use crate::{
    chain::entry,
    support::{
        controlplane::ControlPlane,
        postgres::{Database, Postgres, run},
        rollbackd::{Rollbackd, Setup},
        space::Space,
        store::Place as ServerPlace,
        wait::until,
    },
};

enum Place {
    Sqlite(tempfile::TempDir),
    Postgres(Database),
}

impl Place {
    fn file() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    async fn database() -> Self {
        Self::Postgres(Postgres::shared().database().await)
    }

    fn url(&self) -> String {
        match self {
            Self::Sqlite(folder) => format!("sqlite:{}", folder.path().join("rollbackd.db").display()),
            Self::Postgres(database) => database.url().to_string(),
        }
    }

    async fn open(&self) -> Store {
        let url: StoreUrl = self.url().parse().unwrap();
        Store::open(&url, Metrics::new(), None).await.unwrap_or_else(|error| panic!("{}", causes(&error)))
    }

    /// A store with three entries, at rest.
    async fn written(self) -> Self {
        let store = self.open().await;
        for number in 1..=3 {
            store.append(&entry(number)).await.unwrap();
        }
        assert_eq!(store.check_schema(&[]).await.unwrap(), [] as [&str; 0]);
        store.close().await;
        self
    }

    async fn alter(&self, sql: &str) {
        install_default_drivers();
        let mut raw = AnyConnection::connect(&self.url()).await.unwrap();
        run(&mut raw, sql).await;
        raw.close().await.unwrap();
    }

    async fn verify(&self, checks: &Checks) -> Report {
        verify_store(&self.url(), checks).await.unwrap()
    }
}

fn assert_finds(report: &Report, what: &str) {
    assert!(report.findings.iter().any(|finding| finding.what.contains(what)), "{what}: {report:?}");
}

/// Alters a new store, and looks what the verifier and what rollbackd say about it.
async fn is_found(place: Place, sql: &str, what: &str) {
    let place = place.written().await;
    place.alter(sql).await;
    assert_finds(&place.verify(&Checks::default()).await, what);
    let store = place.open().await;
    let findings = store.check_schema(&[]).await.unwrap();
    assert!(!findings.is_empty(), "rollbackd finds nothing after {sql}");
    assert!(store.trouble().await.is_some());
    store.close().await;
}

const COLUMNS: &str = "sequence, time, action, outcome, namespace, name, actor, entry, previous, hash";

#[tokio::test]
async fn forged_sqlite_tables_are_found() {
    let view = |text: &str| {
        format!(
            "ALTER TABLE audit RENAME TO kept; CREATE VIEW audit AS SELECT {} FROM kept;
             CREATE TRIGGER audit_insert INSTEAD OF INSERT ON audit BEGIN INSERT INTO kept ({COLUMNS}) VALUES (NEW.sequence, NEW.time, NEW.action, NEW.outcome, NEW.namespace, NEW.name, NEW.actor, NEW.entry, NEW.previous, NEW.hash); END",
            COLUMNS.replace("entry", text)
        )
    };
    let forged = "CASE WHEN (SELECT data_version FROM pragma_data_version) > 1 THEN replace(entry, 'user-', 'forged-') ELSE entry END AS entry";
    for (sql, what) in [
        (view(forged).as_str(), "the table audit is a view and no ordinary table"),
        ("DROP TRIGGER audit_is_append_only_delete", "lacks the trigger \"audit_is_append_only_delete\""),
        (
            "CREATE TRIGGER forge AFTER INSERT ON audit BEGIN UPDATE audit_head SET sequence = 7; END",
            "has a trigger \"forge\" that rollbackd did not make",
        ),
        (
            "DROP TRIGGER audit_is_chained; CREATE TRIGGER audit_is_chained BEFORE INSERT ON audit WHEN FALSE BEGIN SELECT RAISE(ABORT, 'an audit entry is chained'); END",
            "has a trigger \"audit_is_chained\" that was changed",
        ),
        (
            "ALTER TABLE rollbacks ADD COLUMN shown TEXT AS (replace(record, 'a', 'b'))",
            "the table rollbacks computes its column \"shown\"",
        ),
        (
            "ALTER TABLE audit_head RENAME TO kept; CREATE TABLE audit_head (id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1), sequence INTEGER NOT NULL, hash TEXT UNIQUE ON CONFLICT REPLACE) STRICT; INSERT INTO audit_head SELECT * FROM kept",
            "the table audit_head was not made by rollbackd",
        ),
        (
            "DROP TABLE probe; CREATE VIEW probe AS SELECT 1 AS written; CREATE TRIGGER probe_update INSTEAD OF UPDATE ON probe BEGIN SELECT 1; END",
            "the table probe is a view",
        ),
    ] {
        is_found(Place::file(), sql, what).await;
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn forged_postgres_tables_are_found() {
    let forged = "CASE WHEN current_setting('application_name') = 'rollbackd' THEN replace(entry, 'user-', 'forged-') ELSE entry END AS entry";
    let view = format!(
        "ALTER TABLE audit RENAME TO kept; CREATE VIEW audit AS SELECT {} FROM kept",
        COLUMNS.replace("entry", forged)
    );
    for (sql, what) in [
        (view.as_str(), "the table audit is a view and no ordinary table"),
        (
            "ALTER TABLE audit ENABLE ROW LEVEL SECURITY; CREATE POLICY hide ON audit USING (sequence <> 2)",
            "the table audit has row security",
        ),
        ("CREATE RULE skip AS ON INSERT TO audit_outbox DO INSTEAD NOTHING", "the table audit_outbox has a rule"),
        ("CREATE TABLE more () INHERITS (audit)", "inherits from another table"),
        ("ALTER TABLE audit DISABLE TRIGGER audit_is_append_only", "\"audit_is_append_only\" that is switched off"),
        ("DROP TRIGGER audit_start_moves_on ON audit_start", "lacks the trigger \"audit_start_moves_on\""),
        (
            "CREATE OR REPLACE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN COALESCE(NEW, OLD); END $$",
            "has a trigger \"audit_is_append_only\" that was changed",
        ),
        (
            "CREATE FUNCTION forge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.actor := 'forged'; RETURN NEW; END $$;
             CREATE TRIGGER forge BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION forge()",
            "has a trigger \"forge\" that rollbackd did not make",
        ),
        ("ALTER TABLE audit SET UNLOGGED", "is lost in a crash"),
        (
            "ALTER TABLE rollbacks ADD COLUMN shown TEXT GENERATED ALWAYS AS (replace(record, 'a', 'b')) STORED",
            "the table rollbacks computes its column \"shown\"",
        ),
        ("ALTER TABLE audit ALTER COLUMN actor TYPE varchar(100)", "has a column actor of type character varying(100)"),
    ] {
        is_found(Place::database().await, sql, what).await;
    }
}

/// What a name means must not depend on how a user or a database is set up.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn search_path_of_postgres_chooses_nothing() {
    let place = Place::database().await.written().await;
    let Place::Postgres(database) = &place else { unreachable!("made above") };
    // Texts are equal here if their first characters are.
    place
        .alter(&format!(
            "CREATE SCHEMA forged;
             CREATE FUNCTION forged.same(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT pg_catalog.left($1, 1) OPERATOR(pg_catalog.=) pg_catalog.left($2, 1) $$;
             CREATE OPERATOR forged.= (FUNCTION = forged.same, LEFTARG = text, RIGHTARG = text);
             ALTER DATABASE {} SET search_path = forged, public, pg_catalog",
            database.name
        ))
        .await;
    assert_finds(&place.verify(&Checks::default()).await, "search_path puts other names before");
    let store = place.open().await;
    let of = EntryFilter { actor: Some("u".into()), ..EntryFilter::default() };
    assert_eq!(store.entries(&of, Order::OldestFirst { after: 0 }, 10).await.unwrap(), []);
    assert_eq!(store.check_schema(&[]).await.unwrap(), [] as [&str; 0]);
}

#[tokio::test]
async fn known_triggers_are_no_finding() {
    let mut places = vec![(
        Place::file(),
        "CREATE TABLE copies (sequence INTEGER); CREATE TRIGGER replicate AFTER INSERT ON audit BEGIN INSERT INTO copies VALUES (NEW.sequence); END",
    )];
    if std::env::var("ROLLBACKD_TEST_POSTGRES").is_ok() {
        places.push((
            Place::database().await,
            "CREATE FUNCTION replicate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$; CREATE TRIGGER replicate AFTER INSERT ON audit FOR EACH ROW EXECUTE FUNCTION replicate()",
        ));
    }
    for (place, sql) in places {
        let place = place.written().await;
        place.alter(sql).await;
        assert_finds(&place.verify(&Checks::default()).await, "\"replicate\"");
        let known = vec!["replicate".to_owned()];
        let checks = Checks { known_triggers: known.clone(), ..Checks::default() };
        let report = place.verify(&checks).await;
        assert!(report.is_whole(), "{report:?}");
        let store = place.open().await;
        assert_eq!(store.check_schema(&known).await.unwrap(), [] as [&str; 0]);
        store.close().await;
    }
}

/// Between two looks at the tables, what a write says of itself counts.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn write_that_changes_no_row_is_an_error() {
    let place = Place::database().await.written().await;
    let store = place.open().await;
    place.alter("CREATE RULE skip AS ON INSERT TO audit DO INSTEAD NOTHING").await;
    let refused = store.append(&entry(4)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Altered), "{refused:?}");
    assert!(store.trouble().await.is_some());
    assert_eq!(store.head().await.unwrap().sequence, 3);
    place.alter("DROP RULE skip ON audit").await;
    assert_eq!(store.check_schema(&[]).await.unwrap(), [] as [&str; 0]);
    assert_eq!(store.trouble().await, None);
    store.append(&entry(4)).await.unwrap();
}

/// What the verifier is shown is not what others see; it does not take the one for the other.
#[tokio::test]
async fn rows_that_cannot_be_decoded_are_findings_with_their_number() {
    let place = Place::file().written().await;
    let triggers = crate::chain::without_triggers(place.url().trim_start_matches("sqlite:").as_ref()).await;
    crate::chain::close_with_triggers(triggers).await;
    let mut raw = crate::chain::without_triggers(place.url().trim_start_matches("sqlite:").as_ref()).await;
    run(
        &mut raw,
        "UPDATE audit SET entry = CAST(x'7b22ff227d' AS TEXT) WHERE sequence = 1; UPDATE audit SET hash = NULL WHERE sequence = 2",
    )
    .await;
    crate::chain::close_with_triggers(raw).await;
    let report = place.verify(&Checks::default()).await;
    assert_eq!((report.entries, report.head.0), (3, 3), "{report:?}");
    let of = |sequence| {
        let findings = report.findings.iter().filter(move |finding| finding.sequence == Some(sequence));
        findings.map(|finding| finding.what.clone()).collect::<Vec<_>>()
    };
    assert!(of(1).contains(&"its column entry is not UTF-8".to_owned()), "{report:?}");
    assert!(of(2).contains(&"its column hash is NULL".to_owned()), "{report:?}");
    assert!(of(3).iter().any(|what| what.contains("follows another entry 2")), "{report:?}");
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn rows_without_a_text_are_findings_with_their_number_in_postgres() {
    let place = Place::database().await.written().await;
    let Place::Postgres(database) = &place else { unreachable!("made above") };
    let mut raw = database.tamper().await;
    run(&mut raw, "ALTER TABLE audit ALTER COLUMN entry DROP NOT NULL, ALTER COLUMN actor DROP NOT NULL; UPDATE audit SET entry = NULL, actor = NULL WHERE sequence = 2").await;
    raw.close().await.unwrap();
    let report = place.verify(&Checks::default()).await;
    assert_eq!((report.entries, report.head.0), (3, 3), "{report:?}");
    assert_finds(&report, "its column entry is NULL");
    assert!(report.findings.iter().all(|finding| finding.sequence == Some(2)), "{report:?}");
}

/// A database without an encoding takes any bytes.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn bytes_that_are_not_utf8_are_a_finding_in_postgres() {
    let place = Place::Postgres(Postgres::shared().database_without_encoding().await).written().await;
    assert!(place.verify(&Checks::default()).await.is_whole());
    let Place::Postgres(database) = &place else { unreachable!("made above") };
    let mut raw = database.tamper().await;
    run(
        &mut raw,
        "UPDATE audit SET entry = convert_from('\\x7b22ff227d'::bytea, 'SQL_ASCII') WHERE sequence = 2",
    )
    .await;
    raw.close().await.unwrap();
    let report = place.verify(&Checks::default()).await;
    assert_eq!((report.entries, report.head.0), (3, 3), "{report:?}");
    assert_finds(&report, "its column entry is not UTF-8");
}

#[tokio::test]
async fn rollbacks_are_refused_while_tables_are_altered() {
    let space = Space::new(ControlPlane::shared()).await;
    space.recorded(&["img:1", "img:2"]).await;
    let folder = tempfile::tempdir().unwrap();
    let store = ServerPlace::File(folder.path().join("rollbackd.db"));
    let mut setup = Setup { store: Some(&store), ..Setup::new(ControlPlane::shared()) };
    setup.timing.schema_check = [Duration::from_millis(100); 2];
    let rollbackd = Rollbackd::start_with(setup).await;
    let api = &rollbackd.api;
    let verbose = async |text: &str| {
        until(text, async || {
            let answer = api.get("/readyz?verbose").await;
            if answer.text.contains(text) { Ok(()) } else { Err(answer) }
        })
        .await;
    };
    verbose("[+]store ok").await;
    let mut raw = AnyConnection::connect(&store.url()).await.unwrap();
    run(&mut raw, "CREATE TRIGGER forge AFTER INSERT ON audit BEGIN SELECT 1; END").await;
    verbose("no rollback can be recorded: its tables are not what rollbackd made").await;
    let path = format!("{}/rollback", space.path("agent"));
    let refused = api.post(&path, &json!({"toRevision": 1})).await.problem(503, "store-unavailable");
    assert!(refused["detail"].as_str().unwrap().contains("not what rollbackd made"), "{refused}");
    assert!(refused["command"].as_str().unwrap().starts_with("kubectl rollout undo"), "{refused}");
    assert_eq!(rollbackd.faults.patches(), 0);
    let metrics = api.get("/metrics").await.text;
    assert!(metrics.contains("rollbackd_store_schema_findings 1\n"), "{metrics}");
    run(&mut raw, "DROP TRIGGER forge").await;
    verbose("[+]store ok").await;
    api.post(&path, &json!({"toRevision": 1})).await.expect(202);
}

/// The prune says how old the newest pruned entry was.
#[tokio::test]
async fn prune_of_young_entries_is_found_with_the_retention() {
    let place = Place::file();
    let now = jiff::Timestamp::now();
    let days = |days: i64| now.checked_sub(jiff::SignedDuration::from_hours(24 * days)).unwrap();
    let store = place.open().await;
    for age in (90..100).rev() {
        store.append(&Entry { time: days(age), ..entry(age) }).await.unwrap();
    }
    for number in 1..=11 {
        store.append(&Entry { time: now, ..entry(number) }).await.unwrap();
    }
    assert_eq!(store.cut(days(95), now).await.unwrap(), 4);
    store.close().await;
    let held = |days: i64| {
        let retention = Some(jiff::SignedDuration::from_hours(24 * days));
        Checks { retention, ..Checks::default() }
    };
    assert!(place.verify(&held(95)).await.is_whole());
    let report = place.verify(&held(97)).await;
    assert_eq!(report.findings[0].sequence, Some(22), "{report:?}");
    assert_finds(&report, "less than --retention");
}
