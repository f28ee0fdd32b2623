"""The forms that contracts share, at their borders."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from services.chassis.boundary import ContentTooLarge, Digest, FilePath, Key, LeaseName, Name, RequestId, check_size

FORMS: dict[str, TypeAdapter[str]] = {
    "digest": TypeAdapter(Digest),
    "key": TypeAdapter(Key),
    "lease": TypeAdapter(LeaseName),
    "name": TypeAdapter(Name),
    "path": TypeAdapter(FilePath),
    "request": TypeAdapter(RequestId),
}


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("digest", "0aF" + "0" * 61),
        ("key", "c" * 63 + "/" + "i" * 440),
        ("key", "workflow/ä b/c"),
        ("lease", "a/b-1/C_2.x"),
        ("name", "n" * 255),
        ("path", ""),
        ("path", "ä" * 2048),
        ("path", "a/..b/c.."),
        ("request", "ä" * 255),
    ],
)
def test_what_has_the_form_is_taken(form: str, text: str) -> None:
    assert FORMS[form].validate_python(text) == (text.lower() if form == "digest" else text)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("digest", "0" * 63),
        ("digest", "g" * 64),
        ("key", "workflow"),
        ("key", "workflow/"),
        ("key", "/id"),
        ("key", "work flow/id"),
        ("key", "c" * 64 + "/id"),
        ("key", "c/" + "i" * 441),
        ("key", "c/a\0b"),
        ("key", "c/a\u2028b"),
        ("lease", ""),
        ("lease", "a//b"),
        ("lease", "/a"),
        ("lease", "a/"),
        ("lease", "a" * 256),
        ("name", ""),
        ("name", "a b"),
        ("name", "n" * 256),
        ("path", "/etc/passwd"),
        ("path", "a/../b"),
        ("path", ".."),
        ("path", "a\0"),
        ("path", "ä" * 2049),
        ("request", ""),
        ("request", "a\n"),
        ("request", "a" * 256),
    ],
)
def test_what_has_not_the_form_is_refused(form: str, text: Any) -> None:
    with pytest.raises(ValidationError):
        FORMS[form].validate_python(text)


def test_content_is_bounded_by_name() -> None:
    check_size("content", 10, 10)
    with pytest.raises(ContentTooLarge, match="content: 11 bytes are more than the 10") as caught:
        check_size("content", 11, 10)
    assert caught.value.metadata == {"field": "content", "size_bytes": "11", "limit_bytes": "10"}
    assert [violation.field for violation in caught.value.violations] == ["content"]
