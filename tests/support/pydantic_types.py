"""The types of Pydantic's documentation (concepts/types, api/standard_library_types, api/types, api/networks), and what
their schemas come to. The page docs/structured-output.md is made from this table, and a test checks each row.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import ipaddress
import pathlib
import re
import typing
import uuid
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
from pydantic import BaseModel, Field, StringConstraints
from typing_extensions import TypedDict


class Outcome(Enum):
    """What a guide of a type's schema comes to."""

    ACCEPTED = "followed"  # the class accepts every text
    WIDER = "followed; the class accepts fewer texts than its schema"
    NO_SCHEMA = "Pydantic has no schema for it"


@dataclass(frozen=True)
class Row:
    """A type, what it comes to, and why not more."""

    name: str
    type: Any
    outcome: Outcome = Outcome.ACCEPTED
    why: str = ""


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: int


class Movie(TypedDict):
    title: str
    year: int


class Inner(BaseModel):
    value: int
    name: str | None = None


class Closed(BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    value: int


class Tree(BaseModel):
    label: bool
    children: list[Tree] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    good: bool


class Pack(BaseModel):
    kind: Literal["pack"]
    members: list[Annotated[Cat | Dog | Pack, Field(discriminator="kind")]]


Item = typing.TypeVar("Item")


class Box(BaseModel, typing.Generic[Item]):
    item: Item


@pydantic.dataclasses.dataclass
class Pair:
    left: int
    right: str = "x"


W = Outcome.WIDER
ROWS: list[Row] = [
    Row("bool", bool),
    Row("int", int),
    Row("float", float),
    Row("complex", complex, W, "its schema is any string"),
    Row("str", str),
    Row("bytes", bytes),
    Row("None", type(None)),
    Row("Any", Any),
    Row("object", object),
    Row("Decimal", decimal.Decimal, W, "its schema has any string"),
    Row(
        "Decimal with max_digits",
        Annotated[decimal.Decimal, Field(max_digits=4, decimal_places=2)],
        W,
        "its schema has any string",
    ),
    Row("Fraction", fractions.Fraction, W, "its schema is any string"),
    Row("Enum", Colour),
    Row("IntEnum", Level),
    Row("Literal", Literal[1, "a", None]),
    Row("int or str", int | str),
    Row("Optional", bool | None),
    Row("list", list[int]),
    Row("tuple", tuple[int, bool]),
    Row("tuple[int, ...]", tuple[int, ...]),
    Row("tuple[()]", tuple[()]),
    Row("NamedTuple", Point),
    Row("set", set[str]),
    Row("frozenset", frozenset[int]),
    Row("set of an Enum", set[Colour]),
    Row("deque", collections.deque[int]),
    Row("Sequence", typing.Sequence[int]),
    Row("Iterable", typing.Iterable[int]),
    Row("dict", dict[str, int]),
    Row("dict[int, str]", dict[int, str], W, "its schema has any string as a name"),
    Row("dict[Enum, int]", dict[Colour, int]),
    Row("dict[Literal, int]", dict[Literal["x", "y"], int]),
    Row("dict[UUID, int]", dict[uuid.UUID, int]),
    Row("dict[date, int]", dict[datetime.date, int]),
    Row(
        "dict with a pattern",
        dict[Annotated[str, StringConstraints(pattern="^[a-c]$")], int],
        W,
        "its schema has any other name, too",
    ),
    Row("dict with lengths", dict[Annotated[str, StringConstraints(min_length=2, max_length=4)], int]),
    Row("defaultdict", collections.defaultdict[str, int]),
    Row("OrderedDict", collections.OrderedDict[str, int]),
    Row("Counter", typing.Counter[str]),
    Row("TypedDict", Movie),
    Row("date", datetime.date),
    Row("datetime", datetime.datetime),
    Row("time", datetime.time),
    Row("timedelta", datetime.timedelta),
    Row("UUID", uuid.UUID),
    *(Row(f"UUID{n}", getattr(pydantic, f"UUID{n}")) for n in (1, 3, 4, 5, 6, 7, 8) if hasattr(pydantic, f"UUID{n}")),
    Row("Path", pathlib.Path),
    Row("FilePath", pydantic.FilePath, W, "the class demands that the file exists"),
    Row("DirectoryPath", pydantic.DirectoryPath, W, "the class demands that the directory exists"),
    Row("NewPath", pydantic.NewPath, W, "the class demands that the path's parent exists"),
    Row("Pattern", re.Pattern, W, "its schema is any string"),
    Row("IPv4Address", ipaddress.IPv4Address),
    Row("IPv4Interface", ipaddress.IPv4Interface),
    Row("IPv4Network", ipaddress.IPv4Network),
    Row("IPv6Address", ipaddress.IPv6Address),
    Row("IPv6Interface", ipaddress.IPv6Interface),
    Row("IPv6Network", ipaddress.IPv6Network),
    Row("IPvAnyAddress", pydantic.IPvAnyAddress),
    Row("IPvAnyInterface", pydantic.IPvAnyInterface),
    Row("IPvAnyNetwork", pydantic.IPvAnyNetwork),
    Row("AnyUrl", pydantic.AnyUrl),
    Row("HttpUrl", pydantic.HttpUrl, W, "its schema has any scheme"),
    Row("PostgresDsn", pydantic.PostgresDsn, W, "its schema is any string"),
    Row("SecretStr", pydantic.SecretStr),
    Row("SecretBytes", pydantic.SecretBytes),
    Row("Base64Bytes", pydantic.Base64Bytes),
    Row("Base64Str", pydantic.Base64Str, W, "the decoded bytes must be UTF-8"),
    Row("Base64UrlBytes", pydantic.Base64UrlBytes),
    Row("Base64UrlStr", pydantic.Base64UrlStr, W, "the decoded bytes must be UTF-8"),
    Row("ByteSize", pydantic.ByteSize, W, "its schema has any unit"),
    Row("Json", pydantic.Json, W, "its schema is any string"),
    Row("ImportString", pydantic.ImportString, W, "its schema is any string"),
    Row("PastDate", pydantic.PastDate, W, "its schema has any date"),
    Row("FutureDate", pydantic.FutureDate, W, "its schema has any date"),
    Row("AwareDatetime", pydantic.AwareDatetime),
    Row("NaiveDatetime", pydantic.NaiveDatetime, W, "its schema demands a time zone, and the class refuses one"),
    Row("PositiveInt", pydantic.PositiveInt),
    Row("NonNegativeFloat", pydantic.NonNegativeFloat),
    Row("NegativeInt", pydantic.NegativeInt),
    Row("StrictStr", pydantic.StrictStr),
    Row("StrictInt", pydantic.StrictInt),
    Row("FiniteFloat", pydantic.FiniteFloat),
    Row("conint", Annotated[int, Field(ge=0, lt=100, multiple_of=7)]),
    Row("confloat", Annotated[float, Field(gt=0, le=1)]),
    Row("conlist", Annotated[list[int], Field(min_length=1, max_length=3)]),
    Row("constr", Annotated[str, StringConstraints(min_length=1, max_length=5, pattern="^[a-z]+$")]),
    Row("constr with look-ahead", Annotated[str, Field(json_schema_extra={"pattern": r"^(?=.*\d)[a-z\d]{2,4}$"})]),
    Row("BaseModel", Inner),
    Row("BaseModel, extra=forbid", Closed),
    Row("BaseModel, recursive", Tree),
    Row("BaseModel, generic", Box[int]),
    Row("dataclass", Pair),
    Row("RootModel", pydantic.RootModel[list[bool]]),
    Row("discriminated union", Annotated[Cat | Dog, Field(discriminator="kind")]),
    Row("discriminated union, recursive", Annotated[Cat | Dog | Pack, Field(discriminator="kind")]),
    Row("Callable", typing.Callable, Outcome.NO_SCHEMA),
]


def table() -> str:
    """Returns the rows as a Markdown table."""
    rows = [f"| `{row.name}` | {row.outcome.value}{f': {row.why}' if row.why else ''} |" for row in ROWS]
    return "\n".join(["| type | its schema is |", "| --- | --- |", *rows]) + "\n"
