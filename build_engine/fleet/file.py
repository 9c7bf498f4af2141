"""The fleet file: TOML, validated before anything else happens. Every message names the entry, the key and the value.

root = "engines"                # relative to the file, as model paths are; default: .run/engines
[defaults]                      # any key of an entry
max_seq_len = 8192
[[engines]]
model = "models/llama-3.1-8b"   # a list in place of a value: one engine for each
target = ["h100", "l40s"]
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from build_engine.artifact.engine_dir import DEFAULT_ROOT
from build_engine.errors import EngineRefusedError
from build_engine.gpu.planning.calibration import DEFAULT_CALIBRATION
from build_engine.gpu.planning.plan_request import AUTO
from build_engine.gpu.planning.planner import DEFAULT_TRTLLM
from build_engine.targets.precisions import KvPrecisionName, PrecisionName
from build_engine.targets.registry import CPU, find_target

_Value = TypeVar("_Value")
_ENGINES, _DEFAULTS, _ROOT = "engines", "defaults", "root"
_LOCAL = (".", "/", "~")  # how a calibration path begins; anything else is a name that upstream fetches


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _known_target(name: str) -> str:
    if name == AUTO:
        return name
    try:
        return find_target(name).name
    except EngineRefusedError as error:
        raise ValueError(str(error)) from error


_Axis = Annotated[tuple[_Value, ...], BeforeValidator(_listed), Field(min_length=1)]
_Count = Annotated[int, Field(ge=1, strict=True)]
_Target = Annotated[str, AfterValidator(_known_target)]


class _Entry(BaseModel):
    """One table of the file; every combination of its lists is an engine. None: chosen by the plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: _Axis[str]
    target: _Axis[_Target]
    precision: _Axis[PrecisionName] = (PrecisionName.AUTO,)
    kv_cache_precision: _Axis[KvPrecisionName] = (KvPrecisionName.AUTO,)
    tp: _Axis[_Count] = (1,)
    pp: _Axis[_Count] = (1,)
    max_batch_size: _Axis[_Count | None] = (None,)
    max_seq_len: _Axis[_Count | None] = (None,)
    max_num_tokens: _Axis[_Count | None] = (None,)
    name: str | None = None
    calibration: str = DEFAULT_CALIBRATION
    tensorrt_llm: str = DEFAULT_TRTLLM


_CPU_KEYS = {"model", "target", "precision", "max_seq_len", "name"}


@dataclass(frozen=True)
class FleetEngine:
    """One engine that the file asks for."""

    entry: int  # the number of its table, from 1
    model: Path
    target: str
    precision: PrecisionName
    kv_cache_precision: KvPrecisionName
    tp: int
    pp: int
    max_batch_size: int | None
    max_seq_len: int | None
    max_num_tokens: int | None
    name: str | None
    calibration: str
    tensorrt_llm: str
    root: Path

    @property
    def label(self) -> str:
        """Short, for tables: what tells it from its neighbours."""
        name = self.model.stem if self.model.suffix == ".gguf" else self.model.name
        parts = [self.name or name, self.target]
        if self.precision is not PrecisionName.AUTO:
            parts.append(self.precision.value)
        limits = {"len": self.max_seq_len}
        if self.target != CPU.name:
            parts.append(f"tp{self.tp}" if self.pp == 1 else f"tp{self.tp}pp{self.pp}")
            limits |= {"batch": self.max_batch_size, "step": self.max_num_tokens}
        return " ".join([*parts, *(f"{word}{value}" for word, value in limits.items() if value)])


def read_fleet_file(path: Path) -> list[FleetEngine]:
    """EngineRefusedError with every problem of the file, one a line."""
    document = _read_toml(path)
    tables = document.get(_ENGINES)
    problems = [
        f"unknown key {key!r}: there is {_ROOT}, {_DEFAULTS} and {_ENGINES}"
        for key in document
        if key not in (_ROOT, _DEFAULTS, _ENGINES)
    ]
    defaults, root = document.get(_DEFAULTS, {}), document.get(_ROOT)
    if not isinstance(defaults, dict):
        problems.append(f"{_DEFAULTS} is no table: write [{_DEFAULTS}]")
    if not isinstance(root, str | None):
        problems.append(f"{_ROOT} is {root!r}, a path in quotes is needed")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        problems.append(f"there is no engine: begin each with [[{_ENGINES}]]")
    engines: list[FleetEngine] = []
    if not problems:
        place = path.parent / Path(root).expanduser() if root else DEFAULT_ROOT
        for number, table in enumerate(tables or [], start=1):
            entry = _validate(table, defaults)
            if isinstance(entry, _Entry):
                engines += _expand(number, entry, path.parent, place)
            else:
                problems += [f"{_title(number, table)}: {line}" for line in entry]
    if problems:
        raise EngineRefusedError(
            f"{path} can't be used as it is:\n" + "\n".join(f"  {problem}" for problem in problems)
        )
    return engines


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineRefusedError(f"{path} can't be read: {error}. Name a fleet file, which is TOML.") from error
    try:
        document: dict[str, Any] = _toml_library().loads(content)
    except ValueError as error:
        raise EngineRefusedError(f"{path} is no TOML: {error}.") from error
    return document


def _toml_library() -> Any:
    """In the standard library from Python 3.11 on; on 3.10 the same under the name of its origin."""
    name = next((name for name in ("tomllib", "tomli") if importlib.util.find_spec(name)), None)
    if name is None:
        raise EngineRefusedError("Python 3.10 needs a package to read TOML: pip install tomli.")
    return importlib.import_module(name)


def _validate(table: dict[str, Any], defaults: dict[str, Any]) -> _Entry | list[str]:
    """The entry, or its problems."""
    try:
        entry = _Entry.model_validate({**defaults, **table})
    except ValidationError as error:
        return list(_lines(error, table))
    foreign = sorted(table.keys() - _CPU_KEYS)
    if CPU.name in entry.target and foreign:
        return [f"target {CPU.name} has no {', '.join(foreign)}: leave that out, or use another entry for it"]
    if entry.name and len(entry.model) > 1:
        return [f"one name, {entry.name!r}, for {len(entry.model)} models: give each an entry of its own"]
    return entry


def _expand(number: int, entry: _Entry, base: Path, root: Path) -> Iterator[FleetEngine]:
    axes = ("model", "target", "precision", "kv_cache_precision", "tp", "pp")
    limits = ("max_batch_size", "max_seq_len", "max_num_tokens")
    calibration = entry.calibration
    if calibration.startswith(_LOCAL):
        calibration = str(base / Path(calibration).expanduser())
    for model, *values in product(*(getattr(entry, name) for name in (*axes, *limits))):
        yield FleetEngine(
            entry=number,
            model=base / Path(model).expanduser(),
            name=entry.name,
            calibration=calibration,
            tensorrt_llm=entry.tensorrt_llm,
            root=root,
            **dict(zip((*axes, *limits)[1:], values, strict=True)),
        )


def _title(number: int, table: dict[str, Any]) -> str:
    model, target = table.get("model", "no model"), table.get("target", "no target")
    return f"{_ENGINES} {number} ({model}, {target})"


def _lines(error: ValidationError, table: dict[str, Any]) -> Iterator[str]:
    for problem in error.errors():
        key = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            yield f"unknown key {key!r}. An entry has {', '.join(_Entry.model_fields)}"
        elif problem["type"] == "missing":
            yield f"{key} is missing"
        else:
            origin = "" if key in table else f" (from [{_DEFAULTS}])"
            yield f"{key}{origin} is {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"
