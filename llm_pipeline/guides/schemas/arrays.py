"""uniqueItems, for items that can be counted: the arrangements of a few values are written out."""

from __future__ import annotations

import json
from itertools import permutations
from math import perm
from typing import Any

from llm_pipeline.guides.schemas.keywords import Path, Schema, types_of
from llm_pipeline.guides.schemas.references import References
from llm_pipeline.guides.schemas.refusals import SchemaError

_MAX_ARRANGEMENTS = 400  # all of five values
_DROPPED = ("uniqueItems", "items", "minItems", "maxItems", "type")


def with_unique_items(schema: Schema, references: References, path: Path) -> Schema:
    """Returns a schema without uniqueItems. Raises SchemaError for more values than can be arranged.

    Items that are not counted, such as strings, may repeat: a grammar can't remember them.
    """
    if schema.pop("uniqueItems") is False or "items" not in schema or "array" not in types_of(schema):
        return schema
    values = _values_of(references.resolved(schema["items"], (*path, "items")))
    if values is None or {"prefixItems", "anyOf"} & schema.keys():
        return schema
    low = int(schema.get("minItems", 0))
    high = min(int(schema.get("maxItems", len(values))), len(values))
    if sum(perm(len(values), count) for count in range(low, high + 1)) > _MAX_ARRANGEMENTS:
        problem = f"the {len(values)} values of unique items have too many arrangements."
        raise SchemaError((*path, "uniqueItems"), f"{problem} Set maxItems, or write an object of booleans.")
    if low > high:
        raise SchemaError((*path, "minItems"), f"there are {len(values)} different items. Write a smaller number.")
    arrangements = [list(some) for count in range(low, high + 1) for some in permutations(values, count)]
    rest = {name: value for name, value in schema.items() if name not in _DROPPED}
    other_types = sorted(types_of(schema) - {"array"}) if "type" in schema else []
    if not other_types:
        return {"enum": arrangements, **rest}
    return {"anyOf": [{"enum": arrangements}, {"type": other_types}], **rest}


def _values_of(items: Any) -> list[Any] | None:
    if not isinstance(items, dict):
        return None
    if "const" in items:
        return [items["const"]]
    if isinstance(items.get("enum"), list):
        return list({json.dumps(value): value for value in items["enum"]}.values())
    return [False, True] if items.get("type") == "boolean" else None
