"""Compares the installed tensorrt_llm with the data that the tests' stand-ins are made from (tests/data).

Only names are compared: symbols, parameters and enum members. Types in a binding's docstring are spelled differently
from release to release.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
DATA = _ROOT / "tests" / "data"
_PRODUCT = ("llm_pipeline", "build_engine")
_PATTERN = "tensorrt_llm*api*.json"
_SKIPPED_PARAMETERS = {"self", "args", "kwargs"}
_CLASSES = ("class", "dataclass", "model", "exception")
_COMPARED_KINDS = {*_CLASSES, "function", "enum"}


def compare_installed() -> dict[str, Any]:
    """Returns the version and file of the installed package and one row for each symbol of the data."""
    package: Any = importlib.import_module("tensorrt_llm")
    words = used_words()
    version = str(package.__version__)
    symbols = [
        {"data": name, "is_used": symbol.rsplit(".", 1)[-1] in words, **compare_symbol(symbol, facts, words)}
        for name, symbols in stored(version)
        for symbol, facts in symbols
    ]
    return {"version": version, "file": str(package.__file__), "symbols": symbols}


def used_words() -> frozenset[str]:
    """Returns every word of the modules that import tensorrt_llm: a symbol or parameter that is not among them is not
    used here, and its absence breaks nothing.
    """
    texts = [path.read_text(encoding="utf-8") for package in _PRODUCT for path in (_ROOT / package).rglob("*.py")]
    users = [text for text in texts if re.search(r"(import|from) tensorrt_llm\b", text)]
    return frozenset(word for text in users for word in re.findall(r"\w+", text))


def stored(version: str) -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """Yields each file's name and its symbols with their facts, those of the release line that `version` is of."""
    for path in sorted(DATA.glob(_PATTERN)):
        symbols = json.loads(path.read_text(encoding="utf-8")).get("symbols", {})
        facts = {name: of_release(item, version) for name, item in symbols.items()}
        yield path.name, [(name, item) for name, item in facts.items() if item and _is_comparable(name, item)]


def of_release(facts: Mapping[str, Any], version: str) -> dict[str, Any] | None:
    """Returns the facts of a symbol in a release line such as 1.2, or the newest one before it; None if it had none."""
    if "releases" not in facts:
        return dict(facts)
    number = _minor(version)
    lines = sorted((_minor(line), line) for line in facts["releases"] if _minor(line) <= number)
    return {"kind": facts["kind"], **facts["releases"][lines[-1][1]]} if lines else None


def _minor(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _is_comparable(name: str, facts: Mapping[str, Any]) -> bool:
    return name.startswith("tensorrt_llm.") and facts.get("kind") in _COMPARED_KINDS


def compare_symbol(name: str, facts: Mapping[str, Any], words: Set[str]) -> dict[str, Any]:
    """Returns the differences of one symbol: what is missing in the installed package, which of it is used here (among
    `words`), and what is new.
    """
    try:
        found = resolve(name)
    except (ImportError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        return {"symbol": name, "is_missing": True, "reason": reason, "missing": [], "missing_used": [], "new": []}
    missing: list[str] = []
    used: list[str] = []
    new: list[str] = []
    for owner, known, installed in _name_sets(facts, found):
        if installed is not None:
            prefix = f"{owner}: " if owner else ""
            missing += [prefix + item for item in sorted(known - installed)]
            used += [prefix + item for item in sorted((known - installed) & words)]
            new += [prefix + item for item in sorted(installed - known)]
    return {"symbol": name, "is_missing": False, "reason": "", "missing": missing, "missing_used": used, "new": new}


def resolve(name: str) -> Any:
    """Returns the object with this dotted name. Raises ImportError or AttributeError if it does not exist."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if error.name is not None and name.startswith(error.name):
                continue  # a class, or a module that this release lacks
            raise
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ImportError(f"no module {name}")


def _name_sets(facts: Mapping[str, Any], found: Any) -> Iterator[tuple[str, set[str], set[str] | None]]:
    """Yields the method that has the names ("" for the symbol itself), the names in the data, and the installed ones;
    None if those can't be read.
    """
    if facts["kind"] == "enum":
        members = getattr(found, "__members__", None)
        yield "", set(facts["values"]), set(members) if members is not None else None
        return
    overloads = facts.get("constructor_overloads") or [facts.get("params")]
    if overloads[0] is not None:
        yield "", {item["name"] for overload in overloads for item in overload}, parameter_names(found)
    methods = facts.get("methods") or {}
    yield "", set(methods), {method for method in methods if hasattr(found, method)}
    for method, described in methods.items():
        parameters = described if isinstance(described, list) else described.get("params")
        if hasattr(found, method) and parameters is not None:
            yield method, {item["name"] for item in parameters}, parameter_names(getattr(found, method))


def parameter_names(found: Any) -> set[str] | None:
    """Returns the parameters of a class or function: from nanobind's docstring, or from Python's signature.

    None if neither can be read, or if it takes any argument.
    """
    document = (getattr(found, "__init__", None).__doc__ if inspect.isclass(found) else found.__doc__) or ""
    if re.search(r"^\w+\(self\b", document):
        return set(re.findall(r"[(,*]\s*(\w+):", document)) - _SKIPPED_PARAMETERS
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters} - _SKIPPED_PARAMETERS
