"""Which comment syntax a file has: from its name, then from its shebang, never from other bytes.

A kind of file is in the table only where the place of a comment is certain. JSON, PHP, batch files, assembler, plain text and
all others that are not named here are stamped detached.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from services.stamping.embedding import lead
from services.stamping.embedding.lead import BOM, Lead

_SHEBANG_MAX = 512
"""Bytes of a first line that are looked at; Linux itself reads 256."""


@dataclass(frozen=True, slots=True)
class Syntax:
    """How a file's kind writes a comment, and where it may stand."""

    opener: bytes
    """Before each line; with a closer, before the first line only."""
    closer: bytes = b""
    """After the last line; empty where comments run to the end of the line."""
    lead: Lead = lead.shebang
    blank_line: bool = False
    """The block owns a blank line after it, without which it would document what follows."""
    inline: bool = False
    """What stands before the block may end in the middle of a line."""


_HASH = Syntax(b"#")
_SHELL = Syntax(b"#", lead=lead.shell)
_PYTHON = Syntax(b"#", lead=lead.coding)
_RUBY = Syntax(b"#", lead=lead.coding, blank_line=True)
_YAML = Syntax(b"#", lead=lead.yaml)
_DOCKERFILE = Syntax(b"#", lead=lead.parser_directives)
_SEMICOLON = Syntax(b";")
_DASHES = Syntax(b"--")
_PERCENT = Syntax(b"%", lead=lead.tex)
_SLASHES = Syntax(b"//", lead=lead.slash_shebang)
_SCRIPT = Syntax(b"//", lead=lead.script)
_GO = Syntax(b"//", lead=lead.slash_shebang, blank_line=True)
_RUST = Syntax(b"//", lead=lead.rust)
_SWIFT = Syntax(b"//", lead=lead.swift)
_SCALA = Syntax(b"//", lead=lead.scala)
_SCSS = Syntax(b"//", lead=lead.stylesheet)
_CSS = Syntax(b"/*", b"*/", lead=lead.stylesheet, inline=True)
_HTML = Syntax(b"<!--", b"-->", lead=lead.html, inline=True)
_MARKDOWN = Syntax(b"<!--", b"-->", lead=lead.markdown)
_XML = Syntax(b"<?onex-stamp", b"?>", lead=lead.xml, inline=True)


def _table(rows: Iterable[tuple[str, Syntax | None]]) -> dict[str, Syntax | None]:
    return {name: syntax for names, syntax in rows for name in names.split()}


_BY_SUFFIX = _table(
    [
        ("py pyi pyw pyx pxd bzl", _PYTHON),
        ("rb rake gemspec", _RUBY),
        ("sh bash zsh ksh fish", _SHELL),
        ("yaml yml", _YAML),
        ("toml tf tfvars hcl graphql gql cmake mk mak properties env nix", _HASH),
        ("pm r jl ex exs tcl awk nim ps1 psm1 psd1 gitignore dockerignore service timer desktop", _HASH),
        ("dockerfile containerfile", _DOCKERFILE),
        ("ini clj cljs cljc", _SEMICOLON),
        ("sql lua", _DASHES),
        ("tex sty", _PERCENT),
        ("js mjs cjs jsx ts mts cts tsx", _SCRIPT),
        ("go", _GO),
        ("rs", _RUST),
        ("swift", _SWIFT),
        ("scala sbt", _SCALA),
        ("c h cc cpp cxx hh hpp hxx inl ipp cu cuh java proto kt kts cs dart groovy gradle zig fs fsi", _SLASHES),
        ("scss less", _SCSS),
        ("css", _CSS),
        ("html htm vue svelte", _HTML),
        ("md markdown rmd qmd", _MARKDOWN),
        ("xml xhtml svg xsd xsl xslt rss atom wsdl xlf plist csproj fsproj vbproj props targets", _XML),
        # Known to have no comments, whatever their first line says.
        ("json jsonl ndjson json5 jsonc geojson webmanifest ipynb map har avsc", None),
    ]
)

_BY_NAME = _table(
    [
        (
            "makefile gnumakefile cmakelists.txt nginx.conf codeowners requirements.txt constraints.txt robots.txt",
            _HASH,
        ),
        (
            ".gitignore .gitattributes .gitmodules .gitconfig .dockerignore .npmignore .prettierignore .eslintignore",
            _HASH,
        ),
        (".editorconfig .env .flake8 .pylintrc .coveragerc setup.cfg pipfile", _HASH),
        (".bashrc .bash_profile .bash_aliases .profile .zshrc .zshenv .zprofile", _SHELL),
        ("dockerfile containerfile", _DOCKERFILE),
        ("gemfile rakefile vagrantfile podfile brewfile", _RUBY),
        ("build build.bazel workspace workspace.bazel sconstruct sconscript", _PYTHON),
        ("go.mod go.work", _GO),
        ("jenkinsfile", _SLASHES),
    ]
)

_BY_PREFIX = (("dockerfile.", _DOCKERFILE), ("containerfile.", _DOCKERFILE), (".env.", _HASH), ("makefile.", _HASH))

_BY_INTERPRETER = _table(
    [
        ("python pypy uv pipx", _PYTHON),
        ("ruby", _RUBY),
        ("sh bash zsh dash ash ksh fish csh tcsh", _SHELL),
        ("perl rscript julia elixir awk gawk mawk make tclsh expect nix-shell pwsh ansible-playbook", _HASH),
        ("lua luajit", _DASHES),
        ("node nodejs deno bun ts-node tsx", _SCRIPT),
        ("swift", _SWIFT),
        ("groovy kotlin", _SLASHES),
    ]
)

# env, its options and the variables that it sets.
_NO_COMMAND = re.compile(r"(?:.*/)?env|-.*|.*=.*|")
_VERSION = re.compile(r"[0-9.]+$")


def syntax_of(file_path: str, content: bytes) -> Syntax | None:
    """The syntax of a file by the last part of `file_path` in any case, then by its shebang; None where it has none."""
    name = file_path.rpartition("/")[2].lower()
    if name in _BY_NAME:
        return _BY_NAME[name]
    stem, _, suffix = name.rpartition(".")
    if stem and suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    for prefix, syntax in _BY_PREFIX:
        if name.startswith(prefix):
            return syntax
    return _of_shebang(content)


def _of_shebang(content: bytes) -> Syntax | None:
    line = content[:_SHEBANG_MAX].removeprefix(BOM).partition(b"\n")[0]
    if not line.startswith(b"#!"):
        return None
    words = (word.removeprefix("-S") for word in line[2:].decode("latin-1").split())
    command = next((word for word in words if not _NO_COMMAND.fullmatch(word)), "")
    return _BY_INTERPRETER.get(_VERSION.sub("", command.rpartition("/")[2].lower()))
