"""Rewrites a JSON schema to an equal one of the keywords that llguidance follows, or refuses it with the reason.

It is checked, its references lead to `$defs` of the new document, and annotations are left out. Only what the root
refers to is rewritten. The walk has a stack of its own, because the client chooses the depth, and its time is linear
in the size of the schema; a part that several references share is rewritten once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from llm_pipeline.guides.masks import GuideError
from llm_pipeline.guides.schemas import formats, keywords, numbers
from llm_pipeline.guides.schemas.arrays import with_unique_items
from llm_pipeline.guides.schemas.exclusive import check_exclusive
from llm_pipeline.guides.schemas.keywords import Path, Rewritten, Schema
from llm_pipeline.guides.schemas.names import with_allowed_names
from llm_pipeline.guides.schemas.patterns import without_look_ahead
from llm_pipeline.guides.schemas.references import References
from llm_pipeline.guides.schemas.refusals import SchemaError

_DRAFTS = ("http://json-schema.org/draft-", "https://json-schema.org/draft/", "http://json-schema.org/schema")


def parse(text: str) -> Schema:
    """Returns the schema in a text, with exact integers. Raises GuideError if there is none."""
    try:
        schema = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise GuideError("It is nested too deeply.") from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            raise GuideError(f"It is not valid JSON (line {error.lineno}, column {error.colno}).") from None
        raise GuideError("It has a number that JSON does not allow, or one with too many digits.") from None
    if not isinstance(schema, dict):
        raise GuideError("It is not an object.")
    return schema


@dataclass(frozen=True)
class Normalised:
    """A rewritten schema. `origins` has the paths of the client's schemas, by the `id` of the rewritten ones."""

    document: Schema
    origins: Mapping[int, Path]


def normalised(schema: Schema) -> Normalised:
    """Returns the rewritten schema. Raises SchemaError, a GuideError with the part that can't be followed."""
    return _Rewriting(schema).run()


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


class _Rewriting:
    """One document on its way from the one form to the other."""

    def __init__(self, document: Schema) -> None:
        self._document = document
        self._references = References(document)
        self._definitions: dict[str, Any] = {}  # of the new document
        self._names: dict[tuple[Path, str], str] = {}  # of definitions, by the path and the property they require
        self._origins: dict[int, Path] = {}
        self._left: list[tuple[Path, Any, int | str, Any]] = []  # path, container, key in it, schema to rewrite

    def run(self) -> Normalised:
        """Rewrites the document."""
        root: dict[str, Any] = {}
        self._left.append(((), root, "schema", self._document))
        while self._left:
            path, container, key, schema = self._left.pop()
            container[key] = self._rewritten(schema, path)
        document = root["schema"]
        if document is False:
            raise SchemaError((), "no value can match this schema. Allow one.")
        document = {} if document is True else document
        dialect = self._document.get("$schema")
        head = {"$schema": dialect} if isinstance(dialect, str) and dialect.startswith(_DRAFTS) else {}
        document = {**head, **document, **({"$defs": self._definitions} if self._definitions else {})}
        return Normalised(document, {**self._origins, id(document): ()})

    def _rewritten(self, schema: Any, path: Path) -> Any:
        if isinstance(schema, bool | Rewritten):
            return schema
        if not isinstance(schema, dict):
            raise SchemaError(path, f"here must be {keywords.Form.SCHEMA.value}.")
        if schema.get("not") in ({}, True):
            return False  # zod's z.never()
        schema = _with_closed_properties(schema)
        keywords.check(schema, path)
        new = {name: value for name, value in schema.items() if name in keywords.FOLLOWED}
        moved: dict[str, str] = {}
        for keyword, rewrite in _REWRITES.items():
            if keyword in new:
                new = rewrite(self, new, schema, path, moved)
        if any(name in new for name in numbers.BOUNDS):
            numbers.rewrite_bounds(new, path)
        if "$ref" in new:
            new["$ref"] = self._reference_to(*self._references.target(new["$ref"], (*path, "$ref")))
        self._add_children(new, path, moved)
        self._origins[id(new)] = path
        return new

    def _add_children(self, new: Schema, path: Path, moved: dict[str, str]) -> None:
        """Replaces the containers of children with copies, to be filled with the rewritten ones."""
        for name, value in new.items():
            form = keywords.FOLLOWED.get(name)
            if form in _CONTAINERS:
                new[name] = value.copy() if isinstance(value, dict | list) else value
        for steps, container, key, child in keywords.children_of(new):
            original = (moved.get(steps[0], steps[0]), *steps[1:])
            self._left.append(((*path, *original), container, key, child))

    def _reference_to(self, path: Path, target: Any, required: str | None = None) -> str:
        """Returns a reference to the definition of a part in the new document, which is rewritten once."""
        if not path and required is None:
            return "#"
        known = self._names.get((path, required or ""))
        if known is None:
            known = f"d{len(self._names)}"
            self._names[path, required or ""] = known
            self._definitions[known] = True  # keeps the place
            if required is not None and isinstance(target, dict):
                target = {**target, "required": [*target.get("required", []), required]}
            self._left.append((path, self._definitions, known, target))
        return f"#/$defs/{known}"

    # One method for each keyword that is rewritten: takes the new schema and the client's, and returns the new one.

    def rewrite_values(self, new: Schema, schema: Schema, path: Path, moved: dict[str, str]) -> Schema:
        """Checks enum and const."""
        for name in ("enum", "const"):
            if name in new:
                numbers.check_values(new["enum"] if name == "enum" else [new["const"]], (*path, name))
        return new

    def rewrite_format(self, new: Schema, schema: Schema, path: Path, moved: dict[str, str]) -> Schema:
        """Writes a format as a pattern, or leaves it out."""
        name = new["format"]
        if formats.is_followed_by_llguidance(name):
            return new
        del new["format"]
        if "string" in keywords.types_of(schema) and (pattern := formats.pattern_of(name)) is not None:
            _add_to_all_of(new, {"pattern": pattern}) if "pattern" in new else new.update(pattern=pattern)
        return new

    def rewrite_pattern(self, new: Schema, schema: Schema, path: Path, moved: dict[str, str]) -> Schema:
        """Writes look-ahead as patterns of their own."""
        first, *others = without_look_ahead(new["pattern"], (*path, "pattern"))
        new["pattern"] = first
        for pattern in others:
            _add_to_all_of(new, {"pattern": pattern})
        return new

    def rewrite_one_of(self, new: Schema, schema: Schema, path: Path, moved: dict[str, str]) -> Schema:
        """Writes oneOf as anyOf, if its alternatives exclude each other."""
        options = new.pop("oneOf")
        discriminator = _discriminator_of(schema)
        check_exclusive(options, self._references, (*path, "oneOf"), discriminator)
        if discriminator is not None:
            options = [
                self._requiring(option, discriminator, (*path, "oneOf", str(n))) for n, option in enumerate(options)
            ]
        if "anyOf" in new:
            _add_to_all_of(new, {"anyOf": options})
        else:
            new["anyOf"] = options
            moved["anyOf"] = "oneOf"
        return new

    def rewrite_names(self, new: Schema, schema: Schema, path: Path, moved: dict[str, str]) -> Schema:
        """Writes propertyNames as properties or patternProperties."""
        return with_allowed_names(new, self._references, path, self._shared)

    def rewrite_unique(self, new: Schema, schema: Schema, path: Path, moved: dict[str, str]) -> Schema:
        """Writes uniqueItems as an enum."""
        return with_unique_items(new, self._references, path)

    def _shared(self, path: Path, schema: Schema) -> Schema:
        return Rewritten({"$ref": self._reference_to(path, schema)})

    def _requiring(self, option: Any, name: str, path: Path) -> Any:
        """Returns an alternative that requires its discriminator, as OpenAPI has it. The definition stays as it is."""
        resolved = self._references.resolved(option, path)
        if not isinstance(option, dict) or not isinstance(resolved, dict) or name in resolved.get("required", ()):
            return option
        if option.keys() & keywords.FOLLOWED.keys() == {"$ref"}:  # recursive unions have references
            target_path, target = self._references.target(option["$ref"], (*path, "$ref"))
            return Rewritten({"$ref": self._reference_to(target_path, target, required=name)})
        return {**option, "required": [*option.get("required", []), name]}


def _with_closed_properties(schema: Schema) -> Schema:
    """Returns a schema with additionalProperties for unevaluatedProperties, where the two have the same meaning."""
    closed = schema.get("unevaluatedProperties")
    if closed is None or _APPLICATORS & schema.keys():
        return schema
    others = {name: value for name, value in schema.items() if name != "unevaluatedProperties"}
    return {"additionalProperties": closed, **others}


def _discriminator_of(schema: Schema) -> str | None:
    """Returns the name of OpenAPI's discriminator."""
    discriminator = schema.get("discriminator")
    name = discriminator.get("propertyName") if isinstance(discriminator, dict) else None
    return name if isinstance(name, str) else None


def _add_to_all_of(new: Schema, schema: Schema) -> None:
    new["allOf"] = [*new.get("allOf", []), schema]


_APPLICATORS = frozenset({"$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "not", "additionalProperties"})
_CONTAINERS = (keywords.Form.SCHEMAS, keywords.Form.SCHEMA_OR_SCHEMAS, keywords.Form.NAMED_SCHEMAS)
_Rewrite: TypeAlias = Callable[[_Rewriting, Schema, Schema, Path, dict[str, str]], Schema]
_REWRITES: Mapping[str, _Rewrite] = {
    "propertyNames": _Rewriting.rewrite_names,
    "uniqueItems": _Rewriting.rewrite_unique,
    "enum": _Rewriting.rewrite_values,
    "const": _Rewriting.rewrite_values,
    "pattern": _Rewriting.rewrite_pattern,
    "format": _Rewriting.rewrite_format,
    "oneOf": _Rewriting.rewrite_one_of,
}
