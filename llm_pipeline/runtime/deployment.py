"""The deployment file: every model that one deployment serves, each with its own names, engine, defaults and limits.

The launcher and the front end read the same file. The launcher lays out an ensemble for each model that says nothing of
a Triton of its own; the front end sends each request to the model that goes by the name asked for. Without a file there
is one model, and the settings describe it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, model_validator
from typing_extensions import Self

from llm_pipeline.protocol.limits import INT32_MAX, MAX_TEMPERATURE
from llm_pipeline.protocol.messages import CompletionParameters
from llm_pipeline.protocol.tensors import ENSEMBLE_MODEL, STAGE_MODELS, stage_model
from llm_pipeline.runtime.renamed_settings import renamed_message, renamed_settings
from llm_pipeline.runtime.settings import PipelineSettings

# What has a key of its own in the file, or is Triton's.
_NOT_IN_SETTINGS = {"engine_dir", "executor", "default_max_tokens"}
_OF_MPIRUN = "ompi_"

# org/model:adapter is one name; what must not be in it are blanks, control characters and what URLs give a meaning.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._:/@+-]*[A-Za-z0-9._:@+-])?$", max_length=200)]
TritonName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
Endpoint = Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$")]
Endpoints = Annotated[tuple[Endpoint, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Executor = Literal["cpu", "tensorrt_llm", "scripted"]


class DeploymentError(ValueError):
    """The file can't be used; the message has a line for each problem, with file, line and key."""


class ModelKind(str, Enum):
    """Whose Triton models these are: our ensemble, or NVIDIA's inflight_batcher_llm."""

    ENSEMBLE = "ensemble"
    INFLIGHT_BATCHER_LLM = "inflight_batcher_llm"

    def __str__(self) -> str:
        return self.value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_SETTINGS: dict[str, Any] = {
    name: (field.annotation, field)
    for name, field in PipelineSettings.model_fields.items()
    if name not in _NOT_IN_SETTINGS and not name.startswith(_OF_MPIRUN)
}
# Any setting of Triton's models (llm_pipeline/runtime/settings.py), for one model alone.
ModelSettings: Any = create_model("ModelSettings", __base__=_Strict, **_SETTINGS)


class ModelLimits(_Strict):
    """What a request to this model may ask for, beside the limits of the whole front end. None: only those."""

    max_tokens: int | None = Field(None, ge=1, le=INT32_MAX)  # asking for more is a 400
    max_choices: int | None = Field(None, ge=1)  # prompts times n; more is a 400
    max_in_flight: int | None = Field(None, ge=1)  # choices in work at once; more is a 429
    request_timeout_s: float | None = Field(None, gt=0)


class SamplingDefaults(_Strict):
    """What holds where a request leaves the field out. None: the API's own default."""

    temperature: float | None = Field(None, ge=0, le=MAX_TEMPERATURE)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=INT32_MAX)
    min_p: float | None = Field(None, ge=0, le=1)


class DeployedModel(_Strict):
    """One `[[models]]` table. Paths are absolute or relative to the working directory; `load` makes them so."""

    name: Name
    aliases: tuple[Name, ...] = ()
    parent: Name | None = None  # of a LoRA adapter or fine-tune: the name of the model that it belongs to
    keys: tuple[str, ...] | None = None  # names of the API keys that may use it; None: all that may by themselves
    kind: ModelKind = ModelKind.ENSEMBLE

    triton: Endpoints = ()  # host:port of the gRPC of its Triton, or of several that share the load; none: our own
    triton_model: TritonName | None = None  # what completes prompts there; None: made from the name
    max_model_len: int | None = Field(None, ge=2)  # for where the front end can't read the engine's manifest
    default_max_tokens: int | None = Field(None, ge=0, le=INT32_MAX)  # 0 fills the context; None: the setting's
    defaults: SamplingDefaults = SamplingDefaults()
    limits: ModelLimits = ModelLimits()

    # Our ensemble.
    engine_dir: Path | None = None  # None: the default engine
    executor: Executor | None = None  # None: the setting's
    settings: ModelSettings = ModelSettings()  # for this model alone; what is not here is the environment's

    # NVIDIA's.
    engine_model: TritonName = "tensorrt_llm"  # which is told to stop a request
    cumulative_text: bool = False  # tensorrt_llm_bls with accumulate_tokens: each response has the text so far
    lora_task_id: int | None = Field(None, ge=0, lt=2**64)  # the adapter that this name stands for

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.kind is ModelKind.INFLIGHT_BATCHER_LLM:
            self._refuse("engine_dir", "executor", "settings", because="is for kind ensemble")
            if self.default_max_tokens == 0:
                raise ValueError(
                    "default_max_tokens = 0 (fill the context) is for kind ensemble; give a number above 0"
                )
            return self
        self._refuse("engine_model", "cumulative_text", "lora_task_id", because='needs kind = "inflight_batcher_llm"')
        if self.triton:
            self._refuse("settings", because="is for models of the deployment's own Triton; set them on the other one")
            if self.default_max_tokens == 0:
                raise ValueError(
                    "default_max_tokens = 0 (fill the context) is a setting of the other Triton: set it there"
                )
        return self

    def _refuse(self, *fields: str, because: str) -> None:
        for field in fields:
            if field in self.model_fields_set:
                raise ValueError(f"{field} {because}")

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that it goes by, its own first."""
        return (self.name, *(alias for alias in self.aliases if alias != self.name))

    @property
    def ensemble(self) -> str:
        """The Triton model that completes prompts."""
        if self.triton_model is not None:
            return self.triton_model
        if self.kind is ModelKind.INFLIGHT_BATCHER_LLM or self.triton:
            return ENSEMBLE_MODEL
        return re.sub(r"[^a-z0-9._]+", "-", self.name.lower()).strip("-")

    @property
    def is_local(self) -> bool:
        """Whether the deployment's own Triton serves it, from a repository that the launcher makes."""
        return self.kind is ModelKind.ENSEMBLE and not self.triton

    def with_defaults(self, parameters: CompletionParameters) -> CompletionParameters:
        """The parameters with this model's defaults where the client left them out."""
        defaults: dict[str, Any] = {
            name: value
            for name, value in self.defaults.model_dump().items()
            if value is not None and getattr(parameters, name) is None
        }
        if parameters.max_tokens is None and self.default_max_tokens:
            defaults["max_tokens"] = self.default_max_tokens
        return replace(parameters, **defaults) if defaults else parameters


class Deployment(_Strict):
    """All models, in the order of the file."""

    models: tuple[DeployedModel, ...]

    @model_validator(mode="after")
    def _has_no_name_twice(self) -> Self:
        if not self.models:
            raise ValueError("there is no model: write at least one [[models]] table")
        owners: dict[str, str] = {}
        for model in self.models:
            for name in model.names:
                if name in owners:
                    raise ValueError(f"the name {name} is that of both {owners[name]} and {model.name}")
                owners[name] = model.name
        return self

    @model_validator(mode="after")
    def _has_no_triton_model_twice(self) -> Self:
        owners: dict[str, str] = {}
        for model in self.models:
            if not model.is_local:
                continue
            for name in (model.ensemble, *(stage_model(model.ensemble, stage) for stage in STAGE_MODELS)):
                if name in owners:
                    raise ValueError(
                        f"{owners[name]} and {model.name} would both have a Triton model called {name}; "
                        "give one of them another triton_model"
                    )
                owners[name] = model.name
        return self

    @classmethod
    def load(cls, path: Path) -> Deployment:
        """Read a TOML file; DeploymentError with every problem. Relative paths in it start at its folder."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
            raise DeploymentError(f"{path}: can't be read: {reason}") from error
        toml = _toml_reader()
        try:
            document = toml.loads(text)
        except toml.TOMLDecodeError as error:
            raise DeploymentError(f"{path}: not TOML: {error}") from error
        try:
            found = cls.model_validate(document)
        except ValidationError as error:
            raise DeploymentError("\n".join(_problems(path, text, error))) from None
        models = (_from_folder(model, path.absolute().parent) for model in found.models)
        return found.model_copy(update={"models": tuple(models)})


def _from_folder(model: DeployedModel, folder: Path) -> DeployedModel:
    if model.engine_dir is None:
        return model
    return model.model_copy(update={"engine_dir": folder / model.engine_dir.expanduser()})


def _toml_reader() -> Any:
    """Python 3.10 has none of its own."""
    return importlib.import_module("tomllib" if importlib.util.find_spec("tomllib") else "tomli")


# --- What is wrong, and where -----------------------------------------------------------------------------------------

_HEADER = re.compile(r"^\s*\[{1,2}\s*([A-Za-z0-9_.\- ]+?)\s*\]{1,2}\s*(#.*)?$")
_KEY = re.compile(r"^\s*([A-Za-z0-9_.-]+)\s*=")


def _problems(path: Path, text: str, error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        loc = problem["loc"]
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = _unknown_key(loc)
        # A rule between several keys names the one at fault in its message; it stands at the table.
        shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
        yield f"{path}, line {_line_of(text, loc)}: {shown}{': ' if shown else ''}{message}"


def _unknown_key(loc: tuple[str | int, ...]) -> str:
    name = str(loc[-1])
    if renamed_settings([name]):
        return renamed_message(name)
    return f"there is no such key{_known_keys(loc)}"


def _known_keys(loc: tuple[str | int, ...]) -> str:
    tables: Mapping[str, type[BaseModel]] = {"limits": ModelLimits, "defaults": SamplingDefaults}
    if len(loc) > 3 and loc[-2] == "settings":
        return " among the settings of Triton's models that can differ between models; see docs/settings.md"
    by_depth: Mapping[int, type[BaseModel]] = {1: Deployment, 3: DeployedModel}
    table = by_depth.get(len(loc)) or tables.get(str(loc[-2]))
    return "" if table is None else "; there is " + ", ".join(table.model_fields)


def _line_of(text: str, loc: tuple[str | int, ...]) -> int:
    """The line that says, or should say, what `loc` is about: the longest beginning of it that has one; 1 at worst."""
    found, best, table, count = 1, 0, tuple[str | int, ...](), -1
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            name = [part.strip() for part in header[1].split(".")]
            if name == ["models"]:
                count += 1
            table = ("models", count, *name[1:]) if name[0] == "models" else tuple(name)
            path = table
        elif key := _KEY.match(line):
            path = (*table, *key[1].split("."))
        else:
            continue
        if best < len(path) and loc[: len(path)] == path:
            found, best = number, len(path)
    return found
