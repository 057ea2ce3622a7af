-- One row for each rollback; `record` is the whole of it as JSON, the other columns serve queries.
CREATE TABLE rollbacks (
    id           TEXT NOT NULL PRIMARY KEY,
    state        TEXT NOT NULL,
    open         INTEGER NOT NULL,
    namespace    TEXT NOT NULL,
    name         TEXT NOT NULL,
    actor        TEXT NOT NULL,
    requested_at TEXT NOT NULL,
    record       TEXT NOT NULL
) STRICT;
CREATE INDEX rollbacks_by_daemonset ON rollbacks (namespace, name, id);
CREATE INDEX rollbacks_open ON rollbacks (id) WHERE open = 1;

-- Append-only. `entry` is the whole entry as JSON text, the other columns serve queries.
CREATE TABLE audit (
    sequence  INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    time      TEXT NOT NULL,
    action    TEXT NOT NULL,
    outcome   TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    actor     TEXT NOT NULL,
    entry     TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_daemonset ON audit (namespace, name, sequence);
CREATE TRIGGER audit_is_append_only_update BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_is_append_only_delete BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;

-- Written to find out whether the store can be written.
CREATE TABLE probe (written INTEGER NOT NULL) STRICT;
INSERT INTO probe VALUES (0);
