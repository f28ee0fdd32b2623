"""Create the store's projections and their watermarks, and keep when a key was opened and ended."""

from alembic import op

revision = "0003_store_projection"
down_revision = "0002_store"

WORKFLOW_PROJECTION = """
CREATE TABLE workflow_projection (
    -- All projections of one building; readers see those of the watermarks' generation.
    generation integer NOT NULL,
    key text COLLATE "C" NOT NULL,
    partition smallint NOT NULL,
    version bigint NOT NULL,
    tag text NOT NULL,
    last_action text NOT NULL,
    namespace text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    final boolean NOT NULL,
    indices jsonb NOT NULL,
    extras text NOT NULL,
    CONSTRAINT workflow_projection_pkey PRIMARY KEY (generation, key),
    CONSTRAINT workflow_projection_version_check CHECK (version >= 1)
)
"""

PROJECTION_WATERMARKS = """
CREATE TABLE projection_watermarks (
    partition smallint NOT NULL,
    -- Everything before this offset is projected.
    watermark bigint NOT NULL DEFAULT 0,
    generation integer NOT NULL DEFAULT 0,
    -- Of the lease by which the partition was last materialized: a lower one is fenced.
    epoch bigint NOT NULL DEFAULT 0,
    CONSTRAINT projection_watermarks_pkey PRIMARY KEY (partition),
    CONSTRAINT projection_watermarks_watermark_check CHECK (watermark >= 0)
)
WITH (fillfactor = 10)
"""

UP = (
    "ALTER TABLE workflow_state ADD COLUMN created_at timestamptz NOT NULL DEFAULT clock_timestamp()",
    # What is known of older keys: they were there when they were last committed.
    "UPDATE workflow_state SET created_at = updated_at",
    # Unlike updated_at it stays the same from commit to commit, so an index on it costs an open key nothing.
    "ALTER TABLE workflow_state ADD COLUMN ended_at timestamptz GENERATED ALWAYS AS (CASE WHEN final THEN updated_at END) STORED",
    WORKFLOW_PROJECTION,
    "CREATE INDEX workflow_projection_tag_idx ON workflow_projection (generation, tag, key)",
    "CREATE INDEX workflow_projection_namespace_idx ON workflow_projection (generation, namespace, key)",
    "CREATE INDEX workflow_projection_created_idx ON workflow_projection (generation, created_at, key)",
    "CREATE INDEX workflow_projection_indices_idx ON workflow_projection USING gin (indices jsonb_path_ops)",
    "COMMENT ON TABLE workflow_projection IS 'Owned by the store node: what is shown of every key, made from its state.'",
    PROJECTION_WATERMARKS,
    "COMMENT ON TABLE projection_watermarks IS 'Owned by the store node: how far each partition of the log is projected.'",
)
DOWN = (
    "DROP TABLE projection_watermarks",
    "DROP TABLE workflow_projection",
    "ALTER TABLE workflow_state DROP COLUMN ended_at",
    "ALTER TABLE workflow_state DROP COLUMN created_at",
)


def upgrade() -> None:
    """Apply each statement of UP, in order."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Apply each statement of DOWN, in order."""
    for statement in DOWN:
        op.execute(statement)
