"""Integers that llguidance follows exactly.

It reads all numbers of a schema as doubles, and then the bounds of integers as int64 (parser/src/json/numeric.rs at
c75b0d90, `normalize_integer_bounds` and `rx_int_range`). The rest is refused, rather than followed for another number.
"""

from __future__ import annotations

from typing import Any

from llm_pipeline.guides.schemas.keywords import Path, Schema, types_of
from llm_pipeline.guides.schemas.refusals import SchemaError, quoted

EXACT_DOUBLES = 2**53
_INT64_MAX = 2**63 - 1
_LOWEST = -(2**63) + 1024  # the double above the int64 minimum, whose absolute value is not an int64
_ONE_SIDED = 10**18  # an open interval of integers with more digits needs a power of ten beyond int64
_BEYOND_DOUBLES = 2**1023
_MULTIPLE_MAX = 2**32 - 1
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
BOUNDS = (*_LIMITS, "multipleOf")


def is_exact(value: int) -> bool:
    """Whether llguidance writes this integer, and no other."""
    if abs(value) <= EXACT_DOUBLES or value == _INT64_MAX:
        return True
    return _LOWEST <= value < _INT64_MAX and float(value) == value


def check_values(values: list[Any], path: Path) -> None:
    """Raises SchemaError for an integer, anywhere in the values of an enum or const, that would come out rounded."""
    left = list(values)
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif not _is_exact_value(value):
            problem = f"the integer {quoted(value)} can't be followed exactly."
            raise SchemaError(path, f"{problem} Beyond 2^53, write it as a string.")


def _is_exact_value(value: Any) -> bool:
    if isinstance(value, float):  # the front end's JSON parser makes doubles of integers beyond 64 bits
        return not value.is_integer() or abs(value) <= EXACT_DOUBLES
    return not isinstance(value, int) or isinstance(value, bool) or is_exact(value)


def rewrite_bounds(schema: Schema, path: Path) -> None:
    """Makes the bounds of integers inclusive, and raises SchemaError for those that would come out rounded."""
    if "multipleOf" in schema:
        _check_multiple(schema["multipleOf"], (*path, "multipleOf"))
    is_integer = "integer" in types_of(schema) and "number" not in types_of(schema)
    if is_integer:
        for name in _LIMITS:
            value = schema.get(name)
            if isinstance(value, float) and value.is_integer():
                schema[name] = int(value)
        _make_inclusive(schema)
    for name in _LIMITS:
        value = schema.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and not _is_exact_bound(value, is_integer):
            raise SchemaError((*path, name), f"{quoted(value)} can't be followed exactly. Write {_nearest(value)}.")
    if is_integer:
        _check_one_sided(schema, path)


def _make_inclusive(schema: Schema) -> None:
    for name, exclusive, step, tightest in (
        ("minimum", "exclusiveMinimum", 1, max),
        ("maximum", "exclusiveMaximum", -1, min),
    ):
        value = schema.get(exclusive)
        if isinstance(value, bool):  # draft 4
            del schema[exclusive]
            if value and isinstance(schema.get(name), int):
                schema[name] += step
            elif value and name in schema:
                schema[exclusive] = schema[name]
        elif isinstance(value, int):
            del schema[exclusive]
            schema[name] = tightest(schema.get(name, value + step), value + step)


def _is_exact_bound(value: int, is_integer: bool) -> bool:
    return is_exact(value) if is_integer else abs(value) < _BEYOND_DOUBLES and float(value) == value


def _nearest(value: int) -> str:
    if value > EXACT_DOUBLES:
        return f"a number up to {EXACT_DOUBLES}, or, for integers, {_INT64_MAX}"
    return f"a number down to {-EXACT_DOUBLES}, or, for integers, {_LOWEST}"


def _check_one_sided(schema: Schema, path: Path) -> None:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is None and low >= _ONE_SIDED:
        raise SchemaError((*path, "minimum"), f"{quoted(low)} needs a maximum beside it. Write one.")
    if high is not None and low is None and high <= -_ONE_SIDED:
        raise SchemaError((*path, "maximum"), f"{quoted(high)} needs a minimum beside it. Write one.")


def _check_multiple(value: float, path: Path) -> None:
    if value <= 0:
        raise SchemaError(path, "multipleOf must be greater than 0.")
    if value > _MULTIPLE_MAX:
        raise SchemaError(path, f"{quoted(value)} can't be followed. Write a number up to {_MULTIPLE_MAX}.")
