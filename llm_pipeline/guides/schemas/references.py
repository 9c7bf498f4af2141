"""Finds the schemas that `$ref` refers to. All of them must stand in the document."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from llm_pipeline.guides.schemas.keywords import Path, Schema
from llm_pipeline.guides.schemas.refusals import SchemaError, quoted

_MAX_CHAIN = 64  # of references to references


class References:
    """The targets of a document's references: JSON pointers and anchors."""

    def __init__(self, document: Schema) -> None:
        self._document = document
        self._base = document.get("$id", document.get("id"))
        self._anchors: dict[str, tuple[Path, Any]] | None = None

    def target(self, reference: str, path: Path) -> tuple[Path, Any]:
        """Returns the path and the schema of a reference that stands at `path`. Raises SchemaError."""
        if isinstance(self._base, str) and reference.startswith(self._base.rstrip("#")):
            reference = reference[len(self._base.rstrip("#")) :] or "#"
        if not reference.startswith("#"):
            problem = f"{quoted(reference)} is not in the schema. Put its target into $defs, and write #/$defs/NAME."
            raise SchemaError(path, problem)
        fragment = unquote(reference[1:])
        found = self._by_pointer(fragment) if fragment[:1] in ("", "/") else self._by_anchor(fragment)
        if found is None or not isinstance(found[1], dict | bool):
            raise SchemaError(path, f"{quoted(reference)} refers to nothing. Write the path of a schema in $defs.")
        return found

    def resolved(self, schema: Any, path: Path) -> Any:
        """Returns the schema behind a schema that is nothing but a reference; other keywords beside it are kept."""
        for _ in range(_MAX_CHAIN):
            if not isinstance(schema, dict) or "$ref" not in schema or not isinstance(schema["$ref"], str):
                return schema
            target = self.target(schema["$ref"], (*path, "$ref"))[1]
            beside = {name: value for name, value in schema.items() if name != "$ref"}
            schema = {**target, **beside} if isinstance(target, dict) else target
        raise SchemaError(path, "its references go in a circle, or are too long a chain. Refer to the schema itself.")

    def _by_pointer(self, pointer: str) -> tuple[Path, Any] | None:
        steps = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
        found: Any = self._document
        for step in steps:
            if isinstance(found, dict) and step in found:
                found = found[step]
            elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            else:
                return None
        return tuple(steps), found

    def _by_anchor(self, name: str) -> tuple[Path, Any] | None:
        if self._anchors is None:
            self._anchors = {}
            left: list[tuple[Path, Any]] = [((), self._document)]
            while left:
                path, part = left.pop()
                if isinstance(part, dict):
                    if isinstance(anchor := part.get("$anchor"), str):
                        self._anchors[anchor] = (path, part)
                    left += [((*path, key), value) for key, value in part.items()]
                elif isinstance(part, list):
                    left += [((*path, str(index)), value) for index, value in enumerate(part)]
        return self._anchors.get(name)
