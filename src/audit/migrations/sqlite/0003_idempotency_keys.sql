-- Which rollback a caller's Idempotency-Key has made. Written with the rollback's first record.
CREATE TABLE idempotency_keys (
    -- Hash of the caller and the key.
    id       TEXT NOT NULL PRIMARY KEY,
    -- Hash of what was asked for.
    request  TEXT NOT NULL,
    rollback TEXT NOT NULL,
    used_at  TEXT NOT NULL,
    -- The first answer as JSON; NULL until it is known.
    answer   TEXT
) STRICT;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (used_at);
