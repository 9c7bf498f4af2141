"""The deployment file: all models that a deployment serves, with their names, engines, defaults and limits.

The launcher and the front end read the same file. The launcher renders an ensemble for each model without a Triton of
its own; the front end routes each request to the model that has the requested name. Without a file there is one model,
described by the settings.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, model_validator
from typing_extensions import Self

from llm_pipeline.protocol.executor_names import ExecutorName
from llm_pipeline.protocol.fields import INT32_MAX, range_of
from llm_pipeline.protocol.messages import CompletionParameters
from llm_pipeline.protocol.tensors import ENSEMBLE_MODEL, STAGE_MODELS, stage_model
from llm_pipeline.runtime.deployment_errors import DeploymentError, problems
from llm_pipeline.runtime.settings import ModelName, PipelineSettings

# Settings with a key of their own in the file.
_NOT_IN_SETTINGS = {"engine_dir", "executor", "default_max_tokens", "trtllm_lora_adapters"}
_LAUNCHER_PREFIXES = ("ompi_", "tllm_")  # set by mpirun and trtllm-llmapi-launch

Name = ModelName
TritonName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
TritonAddress = Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$")]
TritonAddresses = Annotated[
    tuple[TritonAddress, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]


class ModelKind(str, Enum):
    """The kind of the Triton models: our ensemble or NVIDIA's inflight_batcher_llm."""

    ENSEMBLE = "ensemble"
    INFLIGHT_BATCHER_LLM = "inflight_batcher_llm"

    def __str__(self) -> str:
        return self.value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_SETTINGS: dict[str, Any] = {
    name: (field.annotation, field)
    for name, field in PipelineSettings.model_fields.items()
    if name not in _NOT_IN_SETTINGS and not name.startswith(_LAUNCHER_PREFIXES)
}
# Any setting of Triton's models (llm_pipeline/runtime/settings.py), for one model alone.
ModelSettings: Any = create_model("ModelSettings", __base__=_Strict, **_SETTINGS)


class ModelLimits(_Strict):
    """Limits of this model, in addition to those of the front end. None: only those apply."""

    max_tokens: int | None = Field(None, ge=1, le=INT32_MAX)  # 400 beyond
    max_choices: int | None = Field(None, ge=1)  # prompts times n; 400 beyond
    max_in_flight: int | None = Field(None, ge=1)  # concurrent choices; 429 beyond
    request_timeout_s: float | None = Field(None, gt=0)


def _default_of(field: str) -> Any:
    bounds = range_of(field)
    return Field(None, ge=bounds.low, le=bounds.high)


class SamplingDefaults(_Strict):
    """Defaults for fields that a request omits. None: the API's own default."""

    temperature: float | None = _default_of("temperature")
    top_p: float | None = _default_of("top_p")
    top_k: int | None = _default_of("top_k")
    min_p: float | None = _default_of("min_p")


class DeployedModel(_Strict):
    """One `[[models]]` table. Paths are absolute or relative to the working directory; `load` makes them so."""

    name: Name
    aliases: tuple[Name, ...] = ()
    parent: Name | None = None  # the base model of a LoRA adapter or fine-tune
    keys: tuple[str, ...] | None = None  # names of the API keys that may use it; None: all whose own list allows it
    kind: ModelKind = ModelKind.ENSEMBLE

    triton: TritonAddresses = ()  # gRPC host:port of its Triton, or of several that share the load; empty: our own
    triton_model: TritonName | None = None  # the Triton model that completes prompts; None: derived from the name
    max_model_len: int | None = Field(None, ge=2)  # needed if the front end cannot read the engine's manifest
    default_max_tokens: int | None = Field(None, ge=0, le=INT32_MAX)  # 0 fills the context; None: the setting
    defaults: SamplingDefaults = SamplingDefaults()
    limits: ModelLimits = ModelLimits()
    chat_template: Path | None = None  # a Jinja file, read by the front end; None: the engine's own templates

    # Our ensemble.
    engine_dir: Path | None = None  # None: the default engine
    executor: ExecutorName | None = None  # None: the setting
    settings: ModelSettings = ModelSettings()  # for this model alone; unset ones come from the environment

    # A LoRA adapter of the model that `parent` names; its Triton, engine and executor are the parent's.
    lora_dir: Path | None = None  # the adapter's directory, if this deployment's own Triton serves the parent
    lora_name: Name | None = None  # the adapter's name on another Triton, in its TRTLLM_LORA_ADAPTERS

    # NVIDIA's ensemble.
    engine_model: TritonName = "tensorrt_llm"  # the model that cancels requests
    cumulative_text: bool = False  # tensorrt_llm_bls with accumulate_tokens: each response has the text so far
    lora_task_id: int | None = Field(None, ge=0, lt=2**64)  # the adapter of this name

    @model_validator(mode="after")
    def _check_keys_of_kind(self) -> Self:
        if self.kind is ModelKind.INFLIGHT_BATCHER_LLM:
            self._refuse(
                "engine_dir",
                "executor",
                "settings",
                "lora_dir",
                "lora_name",
                "chat_template",
                because="is for kind ensemble",
            )
            if self.default_max_tokens == 0:
                raise ValueError(
                    "default_max_tokens = 0 (fill the context) is for kind ensemble. Set a number greater than 0"
                )
            return self
        self._refuse("engine_model", "cumulative_text", "lora_task_id", because='needs kind = "inflight_batcher_llm"')
        if self.is_adapter:
            self._check_keys_of_adapter()
            return self
        if self.triton:
            self._refuse(
                "settings", because="is for models of the deployment's own Triton. Set them on the other Triton"
            )
            if self.default_max_tokens == 0:
                raise ValueError(
                    "default_max_tokens = 0 (fill the context) is a setting of the other Triton. Set it there"
                )
        return self

    def _check_keys_of_adapter(self) -> None:
        if self.parent is None:
            raise ValueError("a LoRA adapter needs parent, the name of its base model")
        if self.lora_dir is not None and self.lora_name is not None:
            raise ValueError("lora_dir and lora_name exclude each other")
        self._refuse(*_OF_THE_PARENT, because="is the parent's, and can't be set for a LoRA adapter")

    def _refuse(self, *fields: str, because: str) -> None:
        for field in fields:
            if field in self.model_fields_set:
                raise ValueError(f"{field} {because}")

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the model, its own first."""
        return (self.name, *(alias for alias in self.aliases if alias != self.name))

    @property
    def is_adapter(self) -> bool:
        """Whether this is a LoRA adapter of its parent, served by the parent's Triton models."""
        return self.lora_dir is not None or self.lora_name is not None

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
        """Whether the deployment's own Triton serves it, from a repository that the launcher renders."""
        return self.kind is ModelKind.ENSEMBLE and not self.triton

    @property
    def has_own_ensemble(self) -> bool:
        """Whether the launcher renders Triton models for it."""
        return self.is_local and not self.is_adapter

    def with_defaults(self, parameters: CompletionParameters) -> CompletionParameters:
        """The parameters with this model's defaults for fields that the client omitted."""
        defaults: dict[str, Any] = {
            name: value
            for name, value in self.defaults.model_dump().items()
            if value is not None and getattr(parameters, name) is None
        }
        if parameters.max_tokens is None and self.default_max_tokens:
            defaults["max_tokens"] = self.default_max_tokens
        if self.is_adapter:
            defaults["adapter"] = self.lora_name or self.name
        return replace(parameters, **defaults) if defaults else parameters


_OF_THE_PARENT = ("engine_dir", "executor", "settings", "triton", "triton_model", "max_model_len")


class Deployment(_Strict):
    """All models, in the order of the file."""

    models: tuple[DeployedModel, ...]

    @model_validator(mode="after")
    def _check_unique_names(self) -> Self:
        if not self.models:
            raise ValueError("no model is defined. Add at least one [[models]] table")
        owners: dict[str, str] = {}
        for model in self.models:
            for name in model.names:
                if name in owners:
                    raise ValueError(f"the name {name} is used by both {owners[name]} and {model.name}")
                owners[name] = model.name
        return self

    @model_validator(mode="after")
    def _check_unique_triton_models(self) -> Self:
        owners: dict[str, str] = {}
        for model in self.models:
            if not model.has_own_ensemble:
                continue
            for name in (model.ensemble, *(stage_model(model.ensemble, stage) for stage in STAGE_MODELS)):
                if name in owners:
                    raise ValueError(
                        f"{owners[name]} and {model.name} would both have a Triton model called {name}. "
                        "Set another triton_model for one of them"
                    )
                owners[name] = model.name
        return self

    @model_validator(mode="after")
    def _check_adapters(self) -> Self:
        by_name = {name: model for model in self.models for name in model.names}
        for model in self.models:
            if model.is_adapter:
                _check_adapter(model, by_name.get(model.parent or ""))
        return self

    @classmethod
    def load(cls, path: Path) -> Deployment:
        """Reads a TOML file. Relative paths in it start at its folder. Raises DeploymentError with all problems."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
            raise DeploymentError(f"{path}: cannot be read: {reason}") from error
        toml = _toml_reader()
        try:
            document = toml.loads(text)
        except toml.TOMLDecodeError as error:
            raise DeploymentError(f"{path}: invalid TOML: {error}") from error
        try:
            deployment = cls.model_validate(document)
        except ValidationError as error:
            raise DeploymentError("\n".join(problems(path, text, error, cls))) from None
        models = tuple(_from_folder(model, path.absolute().parent) for model in deployment.models)
        return deployment.model_copy(update={"models": _with_inherited(models)})

    def adapters_of(self, base: DeployedModel) -> dict[str, Path]:
        """Returns the directories of the LoRA adapters of a model of this deployment's own Triton, by name."""
        return {
            model.name: model.lora_dir
            for model in self.models
            if model.lora_dir is not None and model.parent in base.names
        }


def _check_adapter(adapter: DeployedModel, parent: DeployedModel | None) -> None:
    """Raises ValueError if an adapter has no parent that can serve it."""
    if parent is None or parent.is_adapter or parent.kind is not ModelKind.ENSEMBLE:
        raise ValueError(
            f"the parent of {adapter.name} must be a model of this file, of kind ensemble and not itself an adapter"
        )
    if parent.executor not in (None, "tensorrt_llm_pytorch"):
        raise ValueError(
            f"{adapter.name} is a LoRA adapter, but the executor of {parent.name} is {parent.executor}, without LoRA. "
            'Serve a model directory with executor = "tensorrt_llm_pytorch"'
        )
    if parent.is_local and adapter.lora_dir is None:
        raise ValueError(f"{adapter.name} needs lora_dir: this deployment's own Triton serves {parent.name}")
    if not parent.is_local and adapter.lora_name is None:
        raise ValueError(
            f"{adapter.name} needs lora_name in place of lora_dir: another Triton serves {parent.name}, and has the "
            "adapter in its TRTLLM_LORA_ADAPTERS"
        )


def _with_inherited(models: tuple[DeployedModel, ...]) -> tuple[DeployedModel, ...]:
    """Returns the models, with the parent's engine and Triton in each adapter."""
    by_name = {name: model for model in models for name in model.names}
    return tuple(_inheriting(model, by_name[model.parent or ""]) if model.is_adapter else model for model in models)


def _inheriting(adapter: DeployedModel, parent: DeployedModel) -> DeployedModel:
    inherited: dict[str, Any] = {
        "engine_dir": parent.engine_dir,
        "executor": parent.executor,
        "triton": parent.triton,
        "triton_model": parent.ensemble,
        "max_model_len": parent.max_model_len,
    }
    if adapter.chat_template is None:
        inherited["chat_template"] = parent.chat_template
    if adapter.default_max_tokens is None:
        inherited["default_max_tokens"] = parent.default_max_tokens
    return adapter.model_copy(update=inherited)


def _from_folder(model: DeployedModel, folder: Path) -> DeployedModel:
    paths = {"engine_dir": model.engine_dir, "lora_dir": model.lora_dir, "chat_template": model.chat_template}
    return model.model_copy(
        update={name: folder / path.expanduser() for name, path in paths.items() if path is not None}
    )


def _toml_reader() -> Any:
    """The TOML library, which Python 3.10 does not include."""
    return importlib.import_module("tomllib" if importlib.util.find_spec("tomllib") else "tomli")
