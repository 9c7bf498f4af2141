"""Makes classes and enums of the executor bindings from the API facts, and checks arguments as nanobind does.

An unknown keyword, a missing or surplus argument, a positional one that is keyword-only, a value of the wrong type and
a None for a type that is not optional raise TypeError; a value outside the range that C++ checks raises RuntimeError.
Reading or writing attributes that upstream does not bind raises AttributeError.
"""

from __future__ import annotations

import enum
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

_FACTS = Path(__file__).parents[2] / "data" / "tensorrt_llm_api.json"
_PREFIX = "tensorrt_llm.bindings.executor."
_INT32 = (-(2**31), 2**31 - 1)
_UINT64 = (0, 2**64 - 1)
# The facts have `int` for every width. These have 64 bits upstream (RandomSeedType, IdType, CacheSaltIDType, size_t).
_WIDE = {"seed", "client_id", "cache_salt_id", "id", "ids", "request_id", "host_cache_size", "max_gpu_total_bytes"}

BINDINGS: dict[str, dict[str, Any]] = {
    name.removeprefix(_PREFIX): facts
    for name, facts in json.loads(_FACTS.read_text(encoding="utf-8"))["symbols"].items()
    if name.startswith(_PREFIX)
}

# cpp/tensorrt_llm/executor/samplingConfig.cpp, by the facts' notes on SamplingConfig.
_SAMPLING_RANGES: dict[str, Callable[[float], bool]] = {
    "beam_width": lambda value: value >= 1,
    "top_k": lambda value: value >= 0,
    "top_p": lambda value: 0 < value <= 1,
    "top_p_min": lambda value: 0 <= value <= 1,
    "top_p_decay": lambda value: 0 < value <= 1,
    "top_p_reset_ids": lambda value: value >= 0,
    "temperature": lambda value: value >= 0,
    "min_p": lambda value: 0 <= value <= 1,
    "min_tokens": lambda value: value >= 0,
    "repetition_penalty": lambda value: value > 0,
    "length_penalty": lambda value: value >= 0,
    "early_stopping": lambda value: value >= 0,
    "beam_search_diversity_rate": lambda value: value >= 0,
    "no_repeat_ngram_size": lambda value: value >= 0,
    "num_return_sequences": lambda value: value > 0,
}


def make_enum(name: str, values: list[str]) -> Any:
    """Returns an enum with these names, numbered from 0."""
    functional_api: Any = enum.Enum  # mypy accepts the functional form with literals only
    return functional_api(name, {value: index for index, value in enumerate(values)})


def make_bindings() -> dict[str, Any]:
    """Returns enums and classes by name; nested ones are also attributes of their outer class."""
    namespace: dict[str, Any] = {}
    for name, facts in BINDINGS.items():
        if facts["kind"] == "enum":
            create_enum: Any = enum.Enum  # typed, mypy takes the call for the definition of a class
            made = create_enum(name.rsplit(".", 1)[-1], {value: index for index, value in enumerate(facts["values"])})
        elif facts["kind"] == "class" and name not in {"Executor", "DecodingMode"}:
            namespace[name] = make_class(name, facts, namespace)
    for name, made in list(namespace.items()):
        if "." in name:
            outer, inner = name.rsplit(".", 1)
            setattr(namespace[outer], inner, made)
    return namespace


def make_class(name: str, facts: Mapping[str, Any], namespace: dict[str, Any]) -> type:
    overloads = facts.get("constructor_overloads") or [facts.get("params") or []]
    attributes = {item["name"]: item["access"] for item in facts.get("attributes") or []}
    is_open = any("dynamic_attr" in note for note in facts.get("notes") or [])

    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        values = bind(f"{name}.__init__", overloads, args, kwargs, namespace)
        if name == "SamplingConfig":
            _check_ranges(values)
        object.__setattr__(self, "_values", {**dict.fromkeys(attributes), **values})
        object.__setattr__(self, "_hidden", values.keys() - attributes.keys())

    def read(self: Any, attribute: str) -> Any:
        values = self.__dict__.get("_values", {})
        if attribute not in values or attribute in self._hidden:
            raise AttributeError(f"{name!r} object has no attribute {attribute!r}")
        return values[attribute]

    def write(self: Any, attribute: str, value: Any) -> None:
        if attributes.get(attribute) == "ro" or not (attribute in attributes or is_open):
            raise AttributeError(f"{name!r} object attribute {attribute!r} can't be set")
        self._values[attribute] = value
        self._hidden.discard(attribute)

    construct.__doc__ = _docstring(overloads)
    body = {"__init__": construct, "__getattr__": read, "__setattr__": write, **_methods(name)}
    return type(name.rsplit(".", 1)[-1], (), body)


def _docstring(overloads: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Returns the signatures in nanobind's format."""
    lines = []
    for parameters in overloads:
        texts = ["self"]
        for parameter in parameters:
            if parameter.get("kw_only") and "*" not in texts:
                texts.append("*")
            default = "" if parameter["required"] else f" = {parameter['default']}"
            texts.append(f"{parameter['name']}: {parameter['type']}{default}")
        lines.append(f"__init__({', '.join(texts)}) -> None")
    return "\n".join(lines)


def _methods(name: str) -> dict[str, Any]:
    if name == "Response":
        return {"has_error": lambda self: self._values.get("error_msg") is not None}
    if name == "IterationStats":
        return {"to_json_str": lambda self: json.dumps({"iter": self.iter})}
    return {}


def peek(made: Any, attribute: str) -> Any:
    """Returns an attribute that the engine reads in C++ although Python can't, such as a Request's priority."""
    return made._values.get(attribute)


def set_values(made: Any) -> dict[str, Any]:
    """Returns the arguments that an object was made with, by name, without those that are None."""
    return {name: value for name, value in made._values.items() if value is not None}


def new(made_class: type, **values: Any) -> Any:
    """Returns an object that upstream fills in C++."""
    made = made_class()
    made._values.update(values)
    return made


def bind(
    name: str,
    overloads: Sequence[Sequence[Mapping[str, Any]]],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    namespace: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns arguments by name, with defaults, of the first overload that fits. Raises TypeError if none does."""
    problems = []
    for parameters in overloads:
        try:
            return _bind_one(parameters, args, kwargs, namespace)
        except TypeError as error:  # noqa: PERF203 - another overload may fit
            problems.append(str(error))
    raise TypeError(f"{name}(): incompatible function arguments: {'; '.join(problems)}")


def _bind_one(
    parameters: Sequence[Mapping[str, Any]],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    namespace: Mapping[str, Any],
) -> dict[str, Any]:
    bound = _signature(parameters).bind(*args, **kwargs).arguments
    values = {}
    for parameter in parameters:
        name = parameter["name"]
        if name in bound:
            check_type(name, parameter.get("type", "Any"), bound[name], namespace)
            values[name] = bound[name]
        else:
            values[name] = _default(parameter["default"], namespace)
    return values


def _signature(parameters: Sequence[Mapping[str, Any]]) -> inspect.Signature:
    made = []
    for parameter in parameters:
        kind = inspect.Parameter.KEYWORD_ONLY if parameter.get("kw_only") else inspect.Parameter.POSITIONAL_OR_KEYWORD
        default = inspect.Parameter.empty if parameter["required"] else None
        made.append(inspect.Parameter(parameter["name"], kind, default=default))
    return inspect.Signature(made)


def _default(text: str, namespace: Mapping[str, Any]) -> Any:
    """Evaluates a default of the facts: a literal, `SomeEnum.VALUE` or `SomeClass()`."""
    return eval(text, dict(namespace))


def check_type(name: str, expected: str, value: Any, namespace: Mapping[str, Any]) -> None:
    """Raises TypeError unless nanobind's caster for this type accepts the value."""
    if not _matches(name, expected.strip(), value, namespace):
        raise TypeError(f"{name}: {value!r:.80} is not {expected}")


def _matches(name: str, expected: str, value: Any, namespace: Mapping[str, Any]) -> bool:
    if expected.startswith("Optional["):
        return value is None or _matches(name, expected[len("Optional[") : -1], value, namespace)
    if expected.startswith("List["):
        inner = expected[len("List[") : -1]
        is_sequence = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        return is_sequence and all(_matches(name, inner, item, namespace) for item in value)
    if expected in _SIMPLE:
        return _SIMPLE[expected](name, value)
    if expected in namespace:
        return isinstance(value, namespace[expected])
    return expected == "Any"


def _is_int(name: str, value: Any) -> bool:
    low, high = _UINT64 if name in _WIDE else _INT32
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_float(_name: str, value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_tensor(_name: str, value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "torch" and hasattr(value, "shape") and hasattr(value, "dtype")


_SIMPLE: dict[str, Callable[[str, Any], bool]] = {
    "int": _is_int,
    "float": _is_float,
    "bool": lambda _name, value: isinstance(value, bool),
    "str": lambda _name, value: isinstance(value, str),
    "bytes": lambda _name, value: isinstance(value, bytes),
    "dict": lambda _name, value: isinstance(value, dict),
    "Path": lambda _name, value: isinstance(value, (str, Path)),
    "timedelta": lambda _name, value: isinstance(value, timedelta),
    "Callable": lambda _name, value: callable(value),
    "torch.Tensor": _is_tensor,
}


def _check_ranges(values: Mapping[str, Any]) -> None:
    for name, is_in_range in _SAMPLING_RANGES.items():
        value = values[name]
        if value is not None and not is_in_range(value):
            raise RuntimeError(f"[TensorRT-LLM][ERROR] Assertion failed: invalid {name} (samplingConfig.cpp)")
