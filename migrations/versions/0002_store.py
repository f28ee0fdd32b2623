"""Create the store node's tables: partitions, states, the log of commits, blobs and leases."""

from alembic import op

revision = "0002_store"
down_revision = "0001_stamp_ledger"

STORE_PARTITIONS = """
CREATE TABLE store_partitions (
    partition smallint NOT NULL,
    next_offset bigint NOT NULL DEFAULT 0,
    CONSTRAINT store_partitions_pkey PRIMARY KEY (partition),
    CONSTRAINT store_partitions_next_offset_check CHECK (next_offset >= 0)
)
-- A row is updated by every batch of commits: room on its page keeps that off the index.
WITH (fillfactor = 10)
"""

WORKFLOW_STATE = """
CREATE TABLE workflow_state (
    key text COLLATE "C" NOT NULL,
    partition smallint NOT NULL,
    version bigint NOT NULL,
    state text NOT NULL,
    schema_version integer NOT NULL,
    final boolean NOT NULL,
    projection text,
    last_action text NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT workflow_state_pkey PRIMARY KEY (key),
    CONSTRAINT workflow_state_version_check CHECK (version >= 1)
)
WITH (fillfactor = 70)
"""

WORKFLOW_STATE_OPEN = "CREATE INDEX workflow_state_open_idx ON workflow_state (partition, key) WHERE NOT final"

WORKFLOW_COMMITS = """
CREATE TABLE workflow_commits (
    partition smallint NOT NULL,
    commit_offset bigint NOT NULL,
    action_index smallint NOT NULL,
    action_id uuid NOT NULL,
    fingerprint bytea NOT NULL,
    action_type text NOT NULL,
    provenance text NOT NULL,
    events text,
    key text COLLATE "C",
    version bigint NOT NULL,
    state text,
    schema_version integer,
    final boolean,
    committed_at timestamptz NOT NULL,
    CONSTRAINT workflow_commits_pkey PRIMARY KEY (partition, commit_offset, action_index),
    -- What makes an action take effect once.
    CONSTRAINT workflow_commits_action_key UNIQUE (action_id),
    CONSTRAINT workflow_commits_fingerprint_check CHECK (octet_length(fingerprint) = 32)
)
"""

BLOBS = """
CREATE TABLE blobs (
    digest bytea NOT NULL,
    size_bytes bigint NOT NULL,
    content bytea,
    upload_id uuid,
    created_at timestamptz NOT NULL,
    CONSTRAINT blobs_pkey PRIMARY KEY (digest),
    CONSTRAINT blobs_digest_check CHECK (octet_length(digest) = 32),
    CONSTRAINT blobs_content_check CHECK ((content IS NULL) <> (upload_id IS NULL))
)
"""

BLOB_CHUNKS = """
CREATE TABLE blob_chunks (
    upload_id uuid NOT NULL,
    position integer NOT NULL,
    content bytea NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT blob_chunks_pkey PRIMARY KEY (upload_id, position)
)
"""

BLOB_REFERENCES = """
CREATE TABLE blob_references (
    digest bytea NOT NULL,
    key text COLLATE "C" NOT NULL,
    CONSTRAINT blob_references_pkey PRIMARY KEY (digest, key)
)
"""

LEASES = """
CREATE TABLE leases (
    name text COLLATE "C" NOT NULL,
    owner text NOT NULL,
    epoch bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT leases_pkey PRIMARY KEY (name),
    CONSTRAINT leases_epoch_check CHECK (epoch >= 1)
)
WITH (fillfactor = 50)
"""

UP = (
    STORE_PARTITIONS,
    "COMMENT ON TABLE store_partitions IS 'Owned by the store node: a row for each partition, with the offset of its next commit.'",
    WORKFLOW_STATE,
    WORKFLOW_STATE_OPEN,
    "COMMENT ON TABLE workflow_state IS 'Owned by the store node: the current state of every key.'",
    WORKFLOW_COMMITS,
    "COMMENT ON TABLE workflow_commits IS 'Owned by the store node: a row for each committed action; log, dedup and outbox at once."
    " What belongs to the commit as a whole stands in its first row. Appended events have no key.'",
    BLOBS,
    "COMMENT ON TABLE blobs IS 'Owned by the store node: bytes by digest; large ones have their bytes in blob_chunks.'",
    BLOB_CHUNKS,
    "COMMENT ON TABLE blob_chunks IS 'Owned by the store node: the bytes of streamed blobs, and of uploads that did not end.'",
    BLOB_REFERENCES,
    "COMMENT ON TABLE blob_references IS 'Owned by the store node: which key refers to which blob.'",
    LEASES,
    "COMMENT ON TABLE leases IS 'Owned by the store node: who holds what, until when.'",
)
DOWN = (
    "DROP TABLE leases",
    "DROP TABLE blob_references",
    "DROP TABLE blob_chunks",
    "DROP TABLE blobs",
    "DROP TABLE workflow_commits",
    "DROP TABLE workflow_state",
    "DROP TABLE store_partitions",
)


def upgrade() -> None:
    """Apply each statement of UP, in order."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Apply each statement of DOWN, in order."""
    for statement in DOWN:
        op.execute(statement)
