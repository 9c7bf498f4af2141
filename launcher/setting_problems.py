"""Messages for invalid values of settings: what is allowed and what was given, in place of pydantic's own words."""

from __future__ import annotations

from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

_NUMBERS = {"int_parsing": "a whole number", "float_parsing": "a number"}
_LIMITS = frozenset({"greater_than", "greater_than_equal", "less_than", "less_than_equal"})
_SECRETS = ("key", "secret")


def setting_problems(settings: type[BaseModel], error: ValidationError) -> list[str]:
    """Returns one sentence for each problem, beginning with the setting's name."""
    return [_sentence(settings, problem) for problem in error.errors()]


def _sentence(settings: type[BaseModel], problem: ErrorDetails) -> str:
    name = "_".join(str(part) for part in problem["loc"])
    field = settings.model_fields.get(name.lower())
    kind = problem["type"]
    expected = None
    if field is not None and (kind in _NUMBERS or kind in _LIMITS):
        is_whole = field.annotation is int or kind == "int_parsing"
        expected = ("a whole number" if is_whole else "a number") + _range(field)
    elif kind == "literal_error":
        expected = f"one of {_options(field, problem)}"
    elif kind == "bool_parsing":
        expected = "true or false"
    if expected is None:
        return f"Invalid value of {name.upper()}: {problem['msg']}."
    given = "" if name.lower().endswith(_SECRETS) else f", not {problem['input']!r}"
    return f"{name.upper()} must be {expected}{given}."


def _range(field: FieldInfo) -> str:
    lowest = next((item for item in field.metadata if isinstance(item, Ge | Gt)), None)
    highest = next((item for item in field.metadata if isinstance(item, Le | Lt)), None)
    least: Any = getattr(lowest, "ge", getattr(lowest, "gt", None))
    most: Any = getattr(highest, "le", getattr(highest, "lt", None))
    above = " above" if isinstance(lowest, Gt) else ""
    if least is not None and most is not None:
        return f"{above} from {least} to {most}" if not above else f" above {least} and at most {most}"
    if least is not None:
        return f" above {least}" if above else f" of at least {least}"
    return f" of at most {most}" if most is not None else ""


def _options(field: FieldInfo | None, problem: ErrorDetails) -> str:
    options = get_args(field.annotation) if field is not None else ()
    if options and all(isinstance(option, str) for option in options):
        return ", ".join(options)
    return str(problem.get("ctx", {}).get("expected", ""))
