"""Let claims on stamps be released, and let the stamps' events be followed in the order in which they became visible."""

from alembic import op

revision = "0006_stamp_claims"
down_revision = "0005_store_retention"

STAMP_REVOCATIONS = """
CREATE TABLE stamp_revocations (
    namespace text NOT NULL,
    request_id text NOT NULL,
    -- What was asked.
    creation_request_id text NOT NULL,
    reason text NOT NULL,
    -- What was answered.
    revoked boolean NOT NULL,
    remaining_claims bigint NOT NULL,
    CONSTRAINT stamp_revocations_pkey PRIMARY KEY (namespace, request_id)
)
"""

STAMP_LOG = """
CREATE TABLE stamp_log (
    -- One row: the number of the next event. Who takes numbers holds it until they are durable.
    only_row boolean NOT NULL DEFAULT true,
    next_offset bigint NOT NULL DEFAULT 0,
    first_offset bigint NOT NULL DEFAULT 0,
    CONSTRAINT stamp_log_pkey PRIMARY KEY (only_row),
    CONSTRAINT stamp_log_only_row_check CHECK (only_row)
)
WITH (fillfactor = 10)
"""

# Serves the release before, which notes its events without a number: it takes them row by row. A later migration drops it.
NEXT_OFFSET = """
CREATE FUNCTION next_stamp_event_offset() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    taken bigint;
BEGIN
    UPDATE stamp_log SET next_offset = next_offset + 1 WHERE only_row RETURNING next_offset - 1 INTO taken;
    PERFORM pg_notify('stamp_events', '0');
    RETURN taken;
END
$$
"""

NUMBER_EVENTS = """
UPDATE stamp_events AS event SET event_offset = numbered.place
FROM (SELECT event_id, row_number() OVER (ORDER BY event_id) - 1 AS place FROM stamp_events) AS numbered
WHERE event.event_id = numbered.event_id
"""

UP = (
    # A tombstone has neither: its request has not come.
    "ALTER TABLE stamp_requests ALTER COLUMN fingerprint DROP NOT NULL",
    "ALTER TABLE stamp_requests ALTER COLUMN stamp_id DROP NOT NULL",
    "ALTER TABLE stamp_requests ADD COLUMN released_at timestamptz",
    "ALTER TABLE stamp_requests ADD CONSTRAINT stamp_requests_tombstone_check "
    "CHECK ((stamp_id IS NULL) = (fingerprint IS NULL) AND (stamp_id IS NOT NULL OR released_at IS NOT NULL))",
    # What counts a stamp's claims.
    "CREATE INDEX stamp_requests_claim_idx ON stamp_requests (namespace, stamp_id) WHERE released_at IS NULL",
    STAMP_REVOCATIONS,
    "COMMENT ON TABLE stamp_revocations IS 'Owned by the stamping node: what each revocation asked for and was answered.'",
    STAMP_LOG,
    "INSERT INTO stamp_log DEFAULT VALUES",
    "COMMENT ON TABLE stamp_log IS 'Owned by the stamping node: the numbers of the stamps'' events.'",
    NEXT_OFFSET,
    "ALTER TABLE stamp_events ADD COLUMN event_offset bigint",
    "ALTER TABLE stamp_events ADD COLUMN reason text",
    "ALTER TABLE stamp_events ADD COLUMN stamped_count integer",
    "ALTER TABLE stamp_events ADD COLUMN refused_count integer",
    NUMBER_EVENTS,
    "UPDATE stamp_log SET next_offset = (SELECT count(*) FROM stamp_events)",
    # The number takes the place of event_id, which stays for the release before and which nobody reads.
    "ALTER TABLE stamp_events DROP CONSTRAINT stamp_events_pkey",
    "ALTER TABLE stamp_events ADD CONSTRAINT stamp_events_pkey PRIMARY KEY (event_offset)",
    "ALTER TABLE stamp_events ALTER COLUMN event_offset SET DEFAULT next_stamp_event_offset()",
    # A batch has no single stamp.
    "ALTER TABLE stamp_events ALTER COLUMN stamp_id DROP NOT NULL",
    "ALTER TABLE stamp_events ADD CONSTRAINT stamp_events_stamp_check "
    "CHECK ((stamp_id IS NULL) = (kind = 'batch_processed'))",
)
DOWN = (
    # The batches, the reasons and the revocations are lost, and with the tombstones what they would have refused.
    "ALTER TABLE stamp_events DROP CONSTRAINT stamp_events_stamp_check",
    "DELETE FROM stamp_events WHERE stamp_id IS NULL",
    "ALTER TABLE stamp_events ALTER COLUMN stamp_id SET NOT NULL",
    "ALTER TABLE stamp_events DROP CONSTRAINT stamp_events_pkey",
    "ALTER TABLE stamp_events ADD CONSTRAINT stamp_events_pkey PRIMARY KEY (event_id)",
    "ALTER TABLE stamp_events DROP COLUMN refused_count",
    "ALTER TABLE stamp_events DROP COLUMN stamped_count",
    "ALTER TABLE stamp_events DROP COLUMN reason",
    "ALTER TABLE stamp_events DROP COLUMN event_offset",
    "DROP FUNCTION next_stamp_event_offset()",
    "DROP TABLE stamp_log",
    "DROP TABLE stamp_revocations",
    "DROP INDEX stamp_requests_claim_idx",
    "ALTER TABLE stamp_requests DROP CONSTRAINT stamp_requests_tombstone_check",
    "DELETE FROM stamp_requests WHERE stamp_id IS NULL",
    "ALTER TABLE stamp_requests DROP COLUMN released_at",
    "ALTER TABLE stamp_requests ALTER COLUMN stamp_id SET NOT NULL",
    "ALTER TABLE stamp_requests ALTER COLUMN fingerprint SET NOT NULL",
)


def upgrade() -> None:
    """Apply each statement of UP, in order."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Apply each statement of DOWN, in order."""
    for statement in DOWN:
        op.execute(statement)
