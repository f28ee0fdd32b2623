"""The schema that all migrations make together, as pg_dump prints it: `schema.sql` beside this module.

`python -m migrations.schema` writes it anew from an empty database; a test finds it equal to what the migrations make.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from services.chassis import migration
from services.chassis.cluster import installation
from services.chassis.embedded import EmbeddedPostgres

PATH = Path(__file__).with_name("schema.sql")
# Lines that tell one build or one run of pg_dump from another and say nothing about the schema.
_VOLATILE = ("-- Dumped ", "\\restrict ", "\\unrestrict ")


def dump(url: str) -> str:
    """The schema of the database at `url`, the same text for the same schema. Raises CalledProcessError if pg_dump fails."""
    # The embedded server's own program: one of an older major version refuses to dump it.
    program = installation().program("pg_dump")
    command = [program, "--schema-only", "--no-owner", "--no-privileges", f"--dbname={url}"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return "".join(line for line in printed.splitlines(keepends=True) if not line.startswith(_VOLATILE))


def main() -> None:
    """Write schema.sql."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder), durable=False) as postgres:
        migration.upgrade(postgres.url)
        PATH.write_text(dump(postgres.url), encoding="utf-8")


if __name__ == "__main__":
    main()
