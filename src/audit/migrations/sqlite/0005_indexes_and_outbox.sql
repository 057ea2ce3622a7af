-- The entries of a namespace in their order.
CREATE INDEX audit_by_namespace ON audit (namespace, sequence);
-- The namespaces that have entries of more than denials, which anybody may leave in namespaces of their choice.
CREATE INDEX audit_namespaces ON audit (namespace) WHERE action <> 'rollback.denied';

-- The user for whom a rollback was made: who asked for it, or on whose behalf it was asked for. '' in a row that an
-- earlier version has written since.
ALTER TABLE rollbacks ADD COLUMN asker TEXT NOT NULL DEFAULT '';
UPDATE rollbacks SET asker = coalesce(json_extract(record, '$.origin.onBehalfOf.user'), actor);
CREATE INDEX rollbacks_by_asker ON rollbacks (asker, id);

-- Entries that are not known to have been written to standard output. A row is written in the transaction of its
-- entry, and removed after its line.
CREATE TABLE audit_outbox (
    sequence INTEGER NOT NULL PRIMARY KEY,
    -- The process that writes the line (`holder` of rollbacks).
    writer   TEXT NOT NULL,
    -- Milliseconds since 1970, by the store's clock, after which another process may write it.
    lease    INTEGER NOT NULL
) STRICT;
