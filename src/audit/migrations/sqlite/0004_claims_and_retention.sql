-- Who makes and follows a rollback: one process at a time, told apart by the epoch (src/audit/claims.rs).
ALTER TABLE rollbacks ADD COLUMN holder TEXT NOT NULL DEFAULT '';
ALTER TABLE rollbacks ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
-- Milliseconds since 1970 until which the holder has it.
ALTER TABLE rollbacks ADD COLUMN lease INTEGER NOT NULL DEFAULT 0;

-- The last entry that retention has cut, one row: what is left begins after it.
CREATE TABLE audit_start (
    id       INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    sequence INTEGER NOT NULL,
    hash     TEXT NOT NULL
) STRICT;
INSERT INTO audit_start VALUES (1, 0, '0000000000000000000000000000000000000000000000000000000000000000');
CREATE TRIGGER audit_start_moves_on BEFORE UPDATE ON audit_start
WHEN NEW.sequence <= OLD.sequence
BEGIN SELECT RAISE(ABORT, 'what was cut stays cut'); END;
DROP TRIGGER audit_is_append_only_delete;
CREATE TRIGGER audit_is_append_only_delete BEFORE DELETE ON audit
WHEN OLD.sequence > (SELECT sequence FROM audit_start)
BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE INDEX audit_by_time ON audit (time, sequence);

-- The oldest schema whose rollbackd may use this store, one row.
CREATE TABLE schema_support (
    id     INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    oldest INTEGER NOT NULL
) STRICT;
INSERT INTO schema_support VALUES (1, 4);
