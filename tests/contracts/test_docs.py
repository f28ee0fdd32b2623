"""What the prose names is there: the settings, targets of the Makefile, links between files, a stamp that is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.stamping import embedding
from tests.contracts import settings_page

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")
_SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_page_of_settings_is_what_the_nodes_describe() -> None:
    assert settings_page.PAGE.read_text() == settings_page.page()


def test_every_make_line_of_the_readme_names_a_target() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = "".join(_SHELL.findall((ROOT / "README.md").read_text())).splitlines()
    named = [line.split()[1] for line in lines if line.startswith("make ")]
    assert named
    assert not set(named) - targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    links = [link for link in _LINK.findall(page.read_text()) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_stamp_shown_in_the_docs_is_one_and_true() -> None:
    shown = re.search(r"^```python\n(.*?)^```", (ROOT / "docs" / "stamp.md").read_text(), re.MULTILINE | re.DOTALL)
    assert shown
    reading = embedding.read(shown[1].encode(), "hello.py")
    assert [stamp.digest for stamp in reading.stamps] == [embedding.digest(reading.body, embedding.DigestRule.RAW)]
