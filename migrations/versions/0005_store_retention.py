"""Let the store find what has outlived its retention without reading what has not."""

from alembic import op

revision = "0005_store_retention"
down_revision = "0004_store_feeds"

UP = (
    # True once the actions of an ended key are forgotten, so that no sweep looks at it again.
    "ALTER TABLE workflow_state ADD COLUMN forgotten boolean NOT NULL DEFAULT false",
    "CREATE INDEX workflow_state_ended_idx ON workflow_state (partition, ended_at) WHERE ended_at IS NOT NULL AND NOT forgotten",
    "CREATE INDEX workflow_state_forgotten_idx ON workflow_state (partition, ended_at) WHERE ended_at IS NOT NULL AND forgotten",
    "CREATE INDEX blobs_created_idx ON blobs (created_at)",
    "CREATE INDEX blobs_upload_idx ON blobs (upload_id) WHERE upload_id IS NOT NULL",
    "CREATE INDEX blob_chunks_created_idx ON blob_chunks (created_at)",
    "CREATE INDEX blob_references_key_idx ON blob_references (key)",
)
DOWN = (
    "DROP INDEX blob_references_key_idx",
    "DROP INDEX blob_chunks_created_idx",
    "DROP INDEX blobs_upload_idx",
    "DROP INDEX blobs_created_idx",
    "DROP INDEX workflow_state_forgotten_idx",
    "DROP INDEX workflow_state_ended_idx",
    "ALTER TABLE workflow_state DROP COLUMN forgotten",
)


def upgrade() -> None:
    """Apply each statement of UP, in order."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Apply each statement of DOWN, in order."""
    for statement in DOWN:
        op.execute(statement)
