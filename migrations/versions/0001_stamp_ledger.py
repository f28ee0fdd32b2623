"""Create the stamping node's ledger: stamps, the requests that made them, and their events."""

from alembic import op

revision = "0001_stamp_ledger"
down_revision = None

STAMPS = """
CREATE TABLE stamps (
    namespace text NOT NULL,
    stamp_id uuid NOT NULL,
    digest bytea NOT NULL,
    version integer NOT NULL,
    op_id uuid NOT NULL,
    content_type text NOT NULL,
    size_bytes bigint NOT NULL,
    file_path text NOT NULL,
    intelligence_data jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    revoked_at timestamptz,
    -- stamp_id is a UUIDv7, so the key's order is the order in which a namespace's stamps were made.
    CONSTRAINT stamps_pkey PRIMARY KEY (namespace, stamp_id),
    -- A new version comes only after a revocation: this key is what keeps a digest stamped once.
    CONSTRAINT stamps_version_key UNIQUE (digest, namespace, version),
    CONSTRAINT stamps_digest_check CHECK (octet_length(digest) = 32),
    CONSTRAINT stamps_version_check CHECK (version >= 1),
    CONSTRAINT stamps_size_bytes_check CHECK (size_bytes >= 0)
)
"""

STAMP_REQUESTS = """
CREATE TABLE stamp_requests (
    namespace text NOT NULL,
    request_id text NOT NULL,
    fingerprint bytea NOT NULL,
    stamp_id uuid NOT NULL,
    created boolean NOT NULL,
    CONSTRAINT stamp_requests_pkey PRIMARY KEY (namespace, request_id)
)
"""

STAMP_EVENTS = """
CREATE TABLE stamp_events (
    event_id bigint GENERATED ALWAYS AS IDENTITY,
    namespace text NOT NULL,
    stamp_id uuid NOT NULL,
    kind text NOT NULL,
    occurred_at timestamptz NOT NULL,
    CONSTRAINT stamp_events_pkey PRIMARY KEY (event_id),
    CONSTRAINT stamp_events_kind_check CHECK (kind IN ('created', 'revoked', 'validated', 'batch_processed'))
)
"""

UP = (
    STAMPS,
    "COMMENT ON TABLE stamps IS 'Owned by the stamping node: every stamp ever made, revoked ones too.'",
    STAMP_REQUESTS,
    "COMMENT ON TABLE stamp_requests IS 'Owned by the stamping node: what each request_id asked for and was answered.'",
    STAMP_EVENTS,
    "COMMENT ON TABLE stamp_events IS 'Owned by the stamping node: what happened to stamps, for those who watch.'",
)
DOWN = (
    "DROP TABLE stamp_events",
    "DROP TABLE stamp_requests",
    "DROP TABLE stamps",
)


def upgrade() -> None:
    """Apply each statement of UP, in order."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Apply each statement of DOWN, in order."""
    for statement in DOWN:
        op.execute(statement)
