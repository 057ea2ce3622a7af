-- The field ownership that an applied rollback has yet to return (src/rollbacks/ownership.rs).
CREATE TABLE ownership_returns (
    rollback  TEXT NOT NULL PRIMARY KEY,
    -- Who owned the template before, as JSON; NULL when nothing more is done about it.
    ownership TEXT,
    -- Milliseconds since 1970 from which it is tried; NULL with the above.
    retry_at  INTEGER,
    attempts  INTEGER NOT NULL DEFAULT 0,
    -- Why it is not returned, as a warning in JSON; NULL before the first attempt.
    warning   TEXT
) STRICT;
CREATE INDEX ownership_returns_due ON ownership_returns (retry_at) WHERE retry_at IS NOT NULL;
