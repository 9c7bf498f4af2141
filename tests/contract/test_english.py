"""Plain technical English in everything that a person reads: code, messages, documentation, test names.

The list has the phrases that review kept finding. Each comes with the plain alternative; usually the better fix is to
rewrite the sentence.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRODUCT = (
    "llm_pipeline",
    "frontend",
    "build_engine",
    "launcher",
    "benchmarks",
    "complete_cli",
    "triton_completions",
    "model_repository",
    "docker",
    "scripts",
)
# Read as plain text: documentation, build files and the playground.
TEXTS = (
    "*.md",
    "docs/**/*.md",
    "docker/*.md",
    "docker/*Dockerfile",
    "docker/*.yaml",
    "docker/requirements/*.in",
    "docker/.env.example",
    "Makefile",
    "pyproject.toml",
    ".pre-commit-config.yaml",
    ".ci/run",
    "deploy/**/*.yaml",
    "deploy/**/*.tpl",
    "deploy/**/*.txt",
    "deploy/**/*.py",
    "scripts/*",
    "requirements/*.in",
    "requirements/*excluded.txt",
    "frontend/playground/*.html",
    "frontend/playground/*.js",
    "frontend/playground/*.css",
    "model_repository/*/config.pbtxt",
)

PLAIN = {
    r"whoever": "the client, the caller, the thread that ...",
    r"nobody": "no client, no caller, no request",
    r"everybody": "all clients, all requests",
    r"somebody": "a client, a caller, a thread",
    r"whichever": "the one that ..., any",
    r"so many": "that many, or the number itself",
    r"as many as": "up to, at most, the same number as",
    r"(?:there )?is (?-i:none)": "is unset, is missing, is empty (is None, with a capital, is Python)",
    r"in vain": "without effect, unsuccessfully",
    r"anew": "again, or a verb with re-: rebuilds, restarts",
    r"meanwhile": "while ..., in the meantime, at the same time",
    r"by and by": "gradually, over time",
    r"that is told": "that is reported, that is sent",
    r"tells? (?:of|what|whether)": "returns, reports, states",
    r"signs? of life": "heartbeat, progress",
    r"for good": "permanently, for the rest of the process",
    r"takes? note": "records, stores, remembers",
    r"see the module": "write the sentence here instead",
}
# In messages to people alone: "as Retry-After says".
PLAIN_IN_MESSAGES = {r"as \S+(?: \S+){0,4} says?": 'name the source: "the delay in the Retry-After header"'}
# Names, of tests and of anything else.
PEOPLE = re.compile(r"(?:^|_)(whoever|nobody|everybody|somebody)(?:_|$)", re.IGNORECASE)

# "Raises KeyError if there is none" is good English.
IDIOMS = {"there is none"}
# (file, phrase) -> why the phrase stays. A quotation or the text of a published release.
EXEMPT: dict[tuple[str, str], str] = {}
THIS_FILE = Path(__file__)  # it quotes all of them


@dataclass(frozen=True)
class Text:
    """A piece of prose and where it stands."""

    path: Path
    line: int
    prose: str
    is_message: bool = False  # a string of the product that is not a docstring

    def where(self, offset: int) -> str:
        return f"{self.path.relative_to(ROOT).as_posix()}:{self.line + self.prose.count(chr(10), 0, offset)}"


def find(text: Text, pattern: str) -> Iterator[str]:
    """Every occurrence, also across a line break."""
    across_lines = pattern.replace(" ", r"\s+")
    for found in re.finditer(rf"(?i)(?<!\w){across_lines}(?!\w)", text.prose):
        phrase = " ".join(found[0].lower().split())
        if phrase not in IDIOMS and (text.path.relative_to(ROOT).as_posix(), phrase) not in EXEMPT:
            yield f'{text.where(found.start())}: "{phrase}"'


def docstrings(tree: ast.Module) -> set[int]:
    """The identities of the nodes that are docstrings."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, owners) and node.body]
    return {id(body[0].value) for body in bodies if isinstance(body[0], ast.Expr)}


def strings(path: Path, tree: ast.Module, *, only_docstrings: bool) -> Iterator[Text]:
    """String literals; parts that stand side by side, and the parts of an f-string, are one."""
    documentation = docstrings(tree)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            prose = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            prose = node.value
        else:
            continue
        if id(node) in documentation or not only_docstrings:
            yield Text(path, node.lineno, prose, is_message=id(node) not in documentation)


def comments(path: Path, source: str) -> Iterator[Text]:
    """Comments, those on lines that follow each other as one."""
    first, lines, last = 0, [""], -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, prose = token.start[0], token.string.lstrip("# ")
            if row == last + 1:
                lines.append(prose)
            else:
                yield Text(path, first, "\n".join(lines))
                first, lines = row, [prose]
            last = row
    yield Text(path, first, "\n".join(lines))


def names_of_tests(path: Path, tree: ast.Module) -> Iterator[Text]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield Text(path, node.lineno, node.name.replace("_", " "))


def of_python(path: Path, *, is_test: bool) -> Iterator[Text]:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, str(path))
    yield from strings(path, tree, only_docstrings=is_test)
    yield from comments(path, source)
    if is_test:
        yield from names_of_tests(path, tree)


@cache
def product_files() -> list[Path]:
    return sorted(path for folder in PRODUCT for path in (ROOT / folder).rglob("*.py"))


@cache
def files_of_tests() -> list[Path]:
    return sorted(path for path in (ROOT / "tests").rglob("*.py") if path != THIS_FILE)


@cache
def texts() -> list[Text]:
    found: list[Text] = []
    for path in product_files():
        found += of_python(path, is_test=False)
    for path in files_of_tests():
        found += of_python(path, is_test=True)
    for path in sorted({path for pattern in TEXTS for path in ROOT.glob(pattern)}):
        if path.is_file() and path.suffix != ".py":
            # Marks of a comment at the start of a line would hide a phrase that goes on there.
            found.append(Text(path, 1, re.sub(r"(?m)^[ \t]*(?:#+|//|\*|>)", "", path.read_text(encoding="utf-8"))))
    return found


def report(found: list[str], plain: str) -> str:
    return f"{len(found)} to rewrite, as: {plain}\n" + "\n".join(found)


@pytest.mark.parametrize("pattern", PLAIN)
def test_prose_uses_plain_english(pattern: str) -> None:
    found = [place for text in texts() for place in find(text, pattern)]
    assert not found, report(found, PLAIN[pattern])


@pytest.mark.parametrize("pattern", PLAIN_IN_MESSAGES)
def test_messages_use_plain_english(pattern: str) -> None:
    found = [place for text in texts() if text.is_message for place in find(text, pattern)]
    assert not found, report(found, PLAIN_IN_MESSAGES[pattern])


def names_of_people(path: Path) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.NAME and PEOPLE.search(token.string):
            yield f"{path.relative_to(ROOT).as_posix()}:{token.start[0]}: {token.string}"


def test_names_call_clients_and_threads_what_they_are() -> None:
    found = [name for path in (*product_files(), *files_of_tests()) for name in names_of_people(path)]
    assert not found, report(found, "clients, callers, requests, threads, processes")


def test_exempt_phrases_are_still_there() -> None:
    for path, phrase in EXEMPT:
        prose = " ".join((ROOT / path).read_text(encoding="utf-8").lower().split())
        assert phrase in prose, f"remove the exemption of {phrase!r} in {path}"
