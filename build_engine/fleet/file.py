"""Reads and validates a fleet file. Every message names the entry, the key and the value.

root = "engines"                # relative to the file, as model paths are; default: .run/engines
[defaults]                      # values for keys that an entry omits
max_seq_len = 8192
[[engines]]
model = "models/llama-3.1-8b"   # a list instead of a value: one engine for each
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
from build_engine.gpu.planning.options import DEFAULT_TRTLLM, GpuOptions
from build_engine.planning.runtimes import Runtime
from build_engine.targets.precisions import KvPrecisionName, PrecisionName
from build_engine.targets.registry import AUTO, CPU, find_target

_Value = TypeVar("_Value")
_ENGINES, _DEFAULTS, _ROOT = "engines", "defaults", "root"
_LOCAL_PREFIXES = (".", "/", "~")  # of a calibration path; anything else is a dataset that upstream downloads


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _known_target(name: str) -> str:
    if name == AUTO:
        return name
    try:
        return find_target(name).name
    except EngineRefusedError as error:
        raise ValueError(str(error)) from error


_Axis = Annotated[tuple[_Value, ...], BeforeValidator(_as_list), Field(min_length=1)]
_Count = Annotated[int, Field(ge=1, strict=True)]
_Target = Annotated[str, AfterValidator(_known_target)]


class _Entry(BaseModel):
    """One table of the file: an engine for each combination of its lists. None: chosen by the planner."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: _Axis[str]
    target: _Axis[_Target]
    precision: _Axis[PrecisionName] = (PrecisionName.AUTO,)
    kv_cache_precision: _Axis[KvPrecisionName] = (KvPrecisionName.AUTO,)
    runtime: _Axis[Runtime] = (Runtime.AUTO,)
    tp: _Axis[_Count] = (1,)
    pp: _Axis[_Count] = (1,)
    ep: _Axis[_Count] = (1,)
    max_batch_size: _Axis[_Count | None] = (None,)
    max_seq_len: _Axis[_Count | None] = (None,)
    max_num_tokens: _Axis[_Count | None] = (None,)
    name: str | None = None
    calibration: str = DEFAULT_CALIBRATION
    tensorrt_llm: str = DEFAULT_TRTLLM
    copy_files: Annotated[bool, Field(alias="copy", strict=True)] = False  # pydantic's models have a method `copy`


_KEYS = tuple(field.alias or name for name, field in _Entry.model_fields.items())
_CPU_KEYS = {"model", "target", "precision", "max_seq_len", "name"}


@dataclass(frozen=True)
class FleetEngine:
    """One engine of the file."""

    entry: int  # the number of its table, from 1
    model: Path
    target: str
    precision: PrecisionName
    name: str | None
    options: GpuOptions  # a CPU engine uses root and max_seq_len only
    runtime: Runtime = Runtime.AUTO  # of a GPU engine; resolved when its job is planned
    has_copies: bool = False  # of the model's files, for the PyTorch runtime

    @property
    def label(self) -> str:
        """A short name for tables: model, target, and the options that are set."""
        name = self.model.stem if self.model.suffix == ".gguf" else self.model.name
        parts = [self.name or name, self.target]
        if self.runtime is Runtime.PYTORCH:
            parts.append(self.runtime.value)
        if self.precision is not PrecisionName.AUTO:
            parts.append(self.precision.value)
        options = self.options
        limits = {"len": options.max_seq_len}
        if self.target != CPU.name:
            others = {"pp": options.pp, "ep": options.ep}
            parts.append(f"tp{options.tp}" + "".join(f"{word}{size}" for word, size in others.items() if size > 1))
            limits |= {"batch": options.max_batch_size, "step": options.max_num_tokens}
        return " ".join([*parts, *(f"{word}{value}" for word, value in limits.items() if value)])


def read_fleet_file(path: Path) -> list[FleetEngine]:
    """Raises EngineRefusedError that lists every problem of the file, one per line."""
    document = _read_toml(path)
    problems = _top_level_problems(document)
    engines: list[FleetEngine] = []
    if not problems:
        root = path.parent / Path(document[_ROOT]).expanduser() if document.get(_ROOT) else DEFAULT_ROOT
        for number, table in enumerate(document[_ENGINES], start=1):
            entry = _validate(table, document.get(_DEFAULTS, {}))
            if isinstance(entry, _Entry):
                engines += _expand(number, entry, path.parent, root)
            else:
                problems += [f"{_title(number, table)}: {line}" for line in entry]
    if problems:
        raise EngineRefusedError(f"{path} is invalid:\n" + "\n".join(f"  {problem}" for problem in problems))
    return engines


def _top_level_problems(document: dict[str, Any]) -> list[str]:
    problems = [
        f"unknown key {key!r}. The keys are {_ROOT}, {_DEFAULTS} and {_ENGINES}"
        for key in document
        if key not in (_ROOT, _DEFAULTS, _ENGINES)
    ]
    tables, root = document.get(_ENGINES), document.get(_ROOT)
    if not isinstance(document.get(_DEFAULTS, {}), dict):
        problems.append(f"{_DEFAULTS} is not a table. Write [{_DEFAULTS}]")
    if not isinstance(root, str | None):
        problems.append(f"{_ROOT} is {root!r}. It must be a path in quotes")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        problems.append(f"there are no engines. Start each one with [[{_ENGINES}]]")
    return problems


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineRefusedError(f"{path} can't be read: {error}. Give the path of a fleet file in TOML.") from error
    try:
        document: dict[str, Any] = _toml_library().loads(content)
    except ValueError as error:
        raise EngineRefusedError(f"{path} is not valid TOML: {error}.") from error
    return document


def _toml_library() -> Any:
    """`tomllib` is in the standard library since Python 3.11; on 3.10 the package `tomli` has the same interface."""
    name = next((name for name in ("tomllib", "tomli") if importlib.util.find_spec(name)), None)
    if name is None:
        raise EngineRefusedError("Python 3.10 can't read TOML by itself. Install a package: pip install tomli.")
    return importlib.import_module(name)


def _validate(table: dict[str, Any], defaults: dict[str, Any]) -> _Entry | list[str]:
    """The entry, or one line per problem."""
    try:
        entry = _Entry.model_validate({**defaults, **table})
    except ValidationError as error:
        return list(_lines(error, table))
    gpu_keys = sorted(table.keys() - _CPU_KEYS)
    if CPU.name in entry.target and gpu_keys:
        return [f"target {CPU.name} does not support {', '.join(gpu_keys)}. Omit it, or use a separate entry"]
    if entry.name and len(entry.model) > 1:
        return [f"the name {entry.name!r} is given to {len(entry.model)} models. Use a separate entry for each"]
    return entry


def _expand(number: int, entry: _Entry, base: Path, root: Path) -> Iterator[FleetEngine]:
    """One engine for each combination of the entry's lists. Relative paths are relative to `base`."""
    option_axes = ("kv_cache_precision", "tp", "pp", "ep", "max_batch_size", "max_seq_len", "max_num_tokens")
    calibration = entry.calibration
    if calibration.startswith(_LOCAL_PREFIXES):
        calibration = str(base / Path(calibration).expanduser())
    option_values = product(*(getattr(entry, name) for name in option_axes))
    for model, target, runtime, precision, values in product(
        entry.model, entry.target, entry.runtime, entry.precision, list(option_values)
    ):
        options = GpuOptions(
            calibration=calibration,
            root=root,
            tensorrt_llm=entry.tensorrt_llm,
            **dict(zip(option_axes, values, strict=True)),
        )
        path = base / Path(model).expanduser()
        yield FleetEngine(number, path, target, precision, entry.name, options, runtime, entry.copy_files)


def _title(number: int, table: dict[str, Any]) -> str:
    model, target = table.get("model", "no model"), table.get("target", "no target")
    return f"{_ENGINES} {number} ({model}, {target})"


def _lines(error: ValidationError, table: dict[str, Any]) -> Iterator[str]:
    for problem in error.errors():
        key = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            yield f"unknown key {key!r}. The keys of an entry are {', '.join(_KEYS)}"
        elif problem["type"] == "missing":
            yield f"{key} is missing"
        else:
            origin = "" if key in table else f" (from [{_DEFAULTS}])"
            yield f"{key}{origin} is {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}"
