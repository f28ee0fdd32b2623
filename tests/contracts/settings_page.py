"""docs/settings.md as the nodes' settings describe it. `python -m tests.contracts.settings_page` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from services.chassis import contracts, settings
from services.chassis.settings import Setting
from services.cli.mesh import NODES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
HEAD = """# Settings

One variable for each field of each node: `OMNIBRIDGE_<NODE>__<SECTION>__<FIELD>`. [Running it](operations.md#environment) says
where a value comes from. Times are in seconds unless the name says otherwise; `null` means none. `make gen` writes this page from
the code.
"""


def page() -> str:
    """The whole page."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield HEAD
    for node in NODES:
        yield f"## {node.capitalize()}\n"
        yield "| variable | type | default | meaning |"
        yield "|---|---|---|---|"
        for setting in _described(node):
            yield row(setting)
        yield ""


def _described(node: str) -> tuple[Setting, ...]:
    module = import_module(f"services.{node}.node")
    cls = getattr(module, f"{node.capitalize()}Settings")
    return settings.describe(cls, node=node, contract=contracts.load(module.CONTRACT))


def row(setting: Setting) -> str:
    """One setting as a line of its table."""
    shared = f", or `{setting.shared_variable}`" if setting.shared_variable else ""
    default = "must be set" if setting.default is None else f"`{setting.default}`"
    cells = (f"`{setting.variable}`{shared}", setting.type, default, setting.description)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page())
