"""How alembic runs a migration: on the connection that services.chassis.migration opened and locked, a transaction each.

Nothing here connects: `omnibridge migrate` is the way to run a migration, and `alembic revision` needs no database.
"""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table=context.config.attributes["version_table"],
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
