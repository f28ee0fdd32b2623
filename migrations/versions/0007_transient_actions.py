"""Let a key's actions be known only as long as the log keeps their commits."""

from alembic import op

revision = "0007_transient_actions"
down_revision = "0006_stamp_claims"

UP = (
    # True or nothing: a NULL takes no room, and no row is written anew.
    "ALTER TABLE workflow_commits ADD COLUMN transient boolean",
)
DOWN = (
    # What was transient is known from then on for as long as its key is open.
    "ALTER TABLE workflow_commits DROP COLUMN transient",
)


def upgrade() -> None:
    """Apply each statement of UP, in order."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Apply each statement of DOWN, in order."""
    for statement in DOWN:
        op.execute(statement)
