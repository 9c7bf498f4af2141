"""Error messages for deployment files: one line per problem, with file, line and key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from llm_pipeline.runtime.renamed_settings import renamed_message, renamed_settings

_HEADER = re.compile(r"^\s*\[{1,2}\s*([A-Za-z0-9_.\- ]+?)\s*\]{1,2}\s*(#.*)?$")
_KEY = re.compile(r"^\s*([A-Za-z0-9_.-]+)\s*=")

Location = tuple[str | int, ...]


class DeploymentError(ValueError):
    """The deployment file is invalid; the message has a line for each problem."""


def problems(path: Path, text: str, error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """One line for each of pydantic's errors in a file with this text. `root` is the model of the whole file."""
    for problem in error.errors():
        location = problem["loc"]
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = _unknown_key(location, root)
        # A rule about several keys names the invalid one in its message; its location is the table.
        shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
        yield f"{path}, line {_line_of(text, location)}: {shown}{': ' if shown else ''}{message}"


def _unknown_key(location: Location, root: type[BaseModel]) -> str:
    name = str(location[-1])
    if renamed_settings([name]):
        return renamed_message(name)
    if len(location) > 3 and location[-2] == "settings":
        return "unknown key. docs/settings.md lists the settings that can differ between models"
    table = _table_at(location[:-1], root)
    return "unknown key" if table is None else f"unknown key. Known keys: {', '.join(table.model_fields)}"


def _table_at(location: Location, root: type[BaseModel]) -> type[BaseModel] | None:
    """The model of the table at `location`."""
    table: Any = root
    for part in location:
        if isinstance(part, str):
            field = table.model_fields.get(part)
            table = None if field is None else field.annotation
        else:
            table = next(iter(get_args(table)), None)
        if table is None:
            return None
    return table if isinstance(table, type) and issubclass(table, BaseModel) else None


def _line_of(text: str, location: Location) -> int:
    """The number of the line with the longest prefix of `location`; 1 if there is none."""
    line_number, longest = 1, 0
    table: Location = ()
    model_index = -1
    for number, line in enumerate(text.splitlines(), 1):
        path: Location
        if header := _HEADER.match(line):
            name = [part.strip() for part in header[1].split(".")]
            if name == ["models"]:
                model_index += 1
            table = ("models", model_index, *name[1:]) if name[0] == "models" else tuple(name)
            path = table
        elif key := _KEY.match(line):
            path = (*table, *key[1].split("."))
        else:
            continue
        if longest < len(path) and location[: len(path)] == path:
            line_number, longest = number, len(path)
    return line_number
