-- What the SQLite migrations up to the same number make. Times, ids and hashes sort by their bytes.

-- One row for each rollback; `record` is the whole of it as JSON, the other columns serve queries.
CREATE TABLE rollbacks (
    id           TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    state        TEXT NOT NULL,
    open         BOOLEAN NOT NULL,
    namespace    TEXT NOT NULL,
    name         TEXT NOT NULL,
    actor        TEXT NOT NULL,
    requested_at TEXT COLLATE "C" NOT NULL,
    record       TEXT NOT NULL,
    -- Who makes and follows it: one replica at a time, told apart by the epoch (src/audit/claims.rs).
    holder       TEXT NOT NULL,
    epoch        BIGINT NOT NULL,
    -- Milliseconds since 1970, by this server's clock, until which the holder has it.
    lease        BIGINT NOT NULL
);
CREATE INDEX rollbacks_by_daemonset ON rollbacks (namespace, name, id);
CREATE INDEX rollbacks_open ON rollbacks (id) WHERE open;

-- Append-only. `entry` is the whole entry as JSON text, the other columns serve queries.
CREATE TABLE audit (
    sequence  BIGINT NOT NULL PRIMARY KEY,
    time      TEXT COLLATE "C" NOT NULL,
    action    TEXT NOT NULL,
    outcome   TEXT NOT NULL,
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    actor     TEXT NOT NULL,
    entry     TEXT NOT NULL,
    previous  TEXT NOT NULL,
    hash      TEXT NOT NULL
);
CREATE INDEX audit_by_daemonset ON audit (namespace, name, sequence);
CREATE INDEX audit_by_time ON audit (time, sequence);

-- The last entry, one row: who appends holds it locked.
CREATE TABLE audit_head (
    id       INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    sequence BIGINT NOT NULL,
    hash     TEXT NOT NULL
);
INSERT INTO audit_head VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');

-- The last entry that retention has cut, one row: what is left begins after it.
CREATE TABLE audit_start (
    id       INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    sequence BIGINT NOT NULL,
    hash     TEXT NOT NULL
);
INSERT INTO audit_start VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');

CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.sequence <= (SELECT sequence FROM audit_start) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'audit is append-only';
END $$;
CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE ON audit
FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER audit_is_not_truncated BEFORE TRUNCATE ON audit
FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();

CREATE FUNCTION audit_start_moves_on() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.sequence <= OLD.sequence THEN
        RAISE EXCEPTION 'what was cut stays cut';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER audit_start_moves_on BEFORE UPDATE ON audit_start
FOR EACH ROW EXECUTE FUNCTION audit_start_moves_on();

-- Which rollback a caller's Idempotency-Key has made. Written with the rollback's first record.
CREATE TABLE idempotency_keys (
    -- Hash of the caller and the key.
    id       TEXT NOT NULL PRIMARY KEY,
    -- Hash of what was asked for.
    request  TEXT NOT NULL,
    rollback TEXT NOT NULL,
    used_at  TEXT COLLATE "C" NOT NULL,
    -- The first answer as JSON; NULL until it is known.
    answer   TEXT
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (used_at);

-- Written to find out whether the store can be written.
CREATE TABLE probe (written BIGINT NOT NULL);
INSERT INTO probe VALUES (0);

-- The oldest schema whose rollbackd may use this store, one row.
CREATE TABLE schema_support (
    id     INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    oldest BIGINT NOT NULL
);
INSERT INTO schema_support VALUES (1, 4);
