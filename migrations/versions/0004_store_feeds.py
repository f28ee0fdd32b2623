"""Let the store's log be followed: where it begins, who has read its outbox, what happened to leases, a key's commits."""

from alembic import op

revision = "0004_store_feeds"
down_revision = "0003_store_projection"

OUTBOX_CONSUMERS = """
CREATE TABLE outbox_consumers (
    consumer text COLLATE "C" NOT NULL,
    partition smallint NOT NULL,
    -- The first offset that is not acknowledged.
    next_offset bigint NOT NULL,
    registered_at timestamptz NOT NULL,
    acknowledged_at timestamptz,
    CONSTRAINT outbox_consumers_pkey PRIMARY KEY (consumer, partition),
    CONSTRAINT outbox_consumers_next_offset_check CHECK (next_offset >= 0)
)
WITH (fillfactor = 50)
"""

LEASE_LOG = """
CREATE TABLE lease_log (
    -- One row: the number of the next event, taken as the partitions' offsets are.
    only_row boolean NOT NULL DEFAULT true,
    next_offset bigint NOT NULL DEFAULT 0,
    first_offset bigint NOT NULL DEFAULT 0,
    CONSTRAINT lease_log_pkey PRIMARY KEY (only_row),
    CONSTRAINT lease_log_only_row_check CHECK (only_row)
)
WITH (fillfactor = 10)
"""

LEASE_EVENTS = """
CREATE TABLE lease_events (
    event_offset bigint NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    owner text NOT NULL,
    epoch bigint NOT NULL,
    occurred_at timestamptz NOT NULL,
    CONSTRAINT lease_events_pkey PRIMARY KEY (event_offset),
    CONSTRAINT lease_events_kind_check CHECK (kind IN ('acquired', 'released', 'expired'))
)
"""

UP = (
    # The oldest offset that the log holds whole, and the oldest whose events are there.
    "ALTER TABLE store_partitions ADD COLUMN first_offset bigint NOT NULL DEFAULT 0",
    "ALTER TABLE store_partitions ADD COLUMN first_event_offset bigint NOT NULL DEFAULT 0",
    "CREATE INDEX workflow_commits_key_idx ON workflow_commits (key, version) WHERE key IS NOT NULL",
    OUTBOX_CONSUMERS,
    "COMMENT ON TABLE outbox_consumers IS 'Owned by the store node: what each consumer of the outbox has acknowledged.'",
    # False while the lease's end, if it has come, has not been noted among the events.
    "ALTER TABLE leases ADD COLUMN end_noted boolean NOT NULL DEFAULT false",
    # Whether the last acquisition changed nothing but the lease's end: how the statement that took it knows.
    "ALTER TABLE leases ADD COLUMN renewed boolean NOT NULL DEFAULT false",
    # Leases that ended before there were events: nobody waits to hear of them.
    "UPDATE leases SET end_noted = true WHERE expires_at <= clock_timestamp()",
    # Not on expires_at, which every renewal changes.
    "CREATE INDEX leases_unnoted_idx ON leases (name) WHERE NOT end_noted",
    LEASE_LOG,
    "INSERT INTO lease_log DEFAULT VALUES",
    "COMMENT ON TABLE lease_log IS 'Owned by the store node: the numbers of the lease events.'",
    LEASE_EVENTS,
    "COMMENT ON TABLE lease_events IS 'Owned by the store node: what happened to leases, for those who watch.'",
)
DOWN = (
    "DROP TABLE lease_events",
    "DROP TABLE lease_log",
    "DROP INDEX leases_unnoted_idx",
    "ALTER TABLE leases DROP COLUMN renewed",
    "ALTER TABLE leases DROP COLUMN end_noted",
    "DROP TABLE outbox_consumers",
    "DROP INDEX workflow_commits_key_idx",
    "ALTER TABLE store_partitions DROP COLUMN first_event_offset",
    "ALTER TABLE store_partitions DROP COLUMN first_offset",
)


def upgrade() -> None:
    """Apply each statement of UP, in order."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Apply each statement of DOWN, in order."""
    for statement in DOWN:
        op.execute(statement)
