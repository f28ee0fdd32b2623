"""Let a blob that its last key released go with the next sweep."""

from alembic import op

revision = "0008_released_blobs"
down_revision = "0007_transient_actions"

UP = (
    # True: released, and to be looked at by the next sweep. False: put again, by whom no release speaks of. A NULL takes no room,
    # and no row is written anew.
    "ALTER TABLE blobs ADD COLUMN released boolean",
    "CREATE INDEX blobs_released_idx ON blobs (digest) WHERE released",
)
DOWN = (
    # What was released goes when it is old.
    "DROP INDEX blobs_released_idx",
    "ALTER TABLE blobs DROP COLUMN released",
)


def upgrade() -> None:
    """Apply each statement of UP, in order."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Apply each statement of DOWN, in order."""
    for statement in DOWN:
        op.execute(statement)
