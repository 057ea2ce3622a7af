-- Each entry carries its predecessor's hash and its own (src/audit/chain.rs). They are null only until
-- the entries that were there before are chained, right after this.
ALTER TABLE audit ADD COLUMN previous TEXT;
ALTER TABLE audit ADD COLUMN hash TEXT;

DROP TRIGGER audit_is_append_only_update;
CREATE TRIGGER audit_is_append_only_update
BEFORE UPDATE OF sequence, time, action, outcome, namespace, name, actor, entry ON audit
BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_is_chained_once BEFORE UPDATE OF previous, hash ON audit
WHEN OLD.previous IS NOT NULL OR OLD.hash IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_is_chained BEFORE INSERT ON audit
WHEN NEW.previous IS NULL OR NEW.hash IS NULL
BEGIN SELECT RAISE(ABORT, 'an audit entry is chained'); END;

-- The last entry, one row: who appends holds it locked. Without a hash the entries are not chained yet.
CREATE TABLE audit_head (
    id       INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    sequence INTEGER NOT NULL,
    hash     TEXT
) STRICT;
INSERT INTO audit_head VALUES (1, 0, NULL);
