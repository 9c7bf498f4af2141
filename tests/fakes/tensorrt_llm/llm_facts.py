"""Makes the classes of the LLM API from the facts in tests/data/tensorrt_llm_llm_api.json, for the script's version.

Upstream's dataclasses check no types, and its pydantic models forbid unknown fields; so do these, because the models
here are pydantic's too. What upstream checks later, in its worker, pytorch_engine.py checks.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from tensorrt_llm.script import read_script

_FACTS = Path(__file__).parents[2] / "data" / "tensorrt_llm_llm_api.json"
SYMBOLS: dict[str, dict[str, Any]] = json.loads(_FACTS.read_text(encoding="utf-8"))["symbols"]


def release() -> str:
    """Returns the facts' name of the release that the script simulates."""
    major, minor = (int(part) for part in read_script().version.split(".")[:2])
    return "1.2" if (major, minor) < (1, 3) else "1.3"


def facts_of(name: str) -> dict[str, Any]:
    """Returns the facts of a symbol, such as "tensorrt_llm.llmapi.KvCacheConfig", in the simulated release."""
    found: dict[str, Any] = SYMBOLS[name]["releases"][release()]
    return found


def make_dataclass(name: str, *bases: type) -> Any:
    """Returns a dataclass with slots. `bases` hold its methods; they must have empty `__slots__`."""
    facts = facts_of(name)
    fields: list[Any] = [(item["name"], Any, _dataclass_default(item)) for item in facts["params"]]
    hidden: list[Any] = [
        (attribute, Any, dataclasses.field(default=None, init=False, repr=False))
        for attribute in facts.get("hidden_attributes", ())
    ]
    return dataclasses.make_dataclass(
        name.rsplit(".", 1)[-1], [*fields, *hidden], bases=bases, slots=True, kw_only=SYMBOLS[name]["kw_only"]
    )


def _dataclass_default(item: Mapping[str, Any]) -> Any:
    if item["required"]:
        return dataclasses.field()
    value = eval(item["default"], {})
    if isinstance(value, (list, dict)):
        return dataclasses.field(default_factory=type(value))
    return dataclasses.field(default=value)


def make_enum(name: str) -> Any:
    functional_api: Any = enum.Enum  # typed as Any: mypy would take the call for the definition of a class
    return functional_api(name.rsplit(".", 1)[-1], {value: value for value in facts_of(name)["values"]}, type=str)


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), arbitrary_types_allowed=True)


def make_model(name: str, namespace: Mapping[str, Any], base: type[BaseModel] = StrictModel) -> Any:
    """Returns a pydantic model; `namespace` has the classes that its fields name."""
    names = {"Any": Any, "Literal": Literal, "Path": Path, "object": Any, **namespace}
    fields: dict[str, Any] = {}
    for item in facts_of(name)["params"]:
        default = ... if item["required"] else eval(item["default"], names)
        alias = item["name"] if item["name"].startswith("_") else None
        fields[item["name"].lstrip("_")] = (eval(item["type"], names), Field(default, alias=alias))
    return create_model(name.rsplit(".", 1)[-1], __base__=base, **fields)
