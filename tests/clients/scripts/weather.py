"""The conversation, the function and the structured answer that every chat client gets.

All values are enumerations or bounded, so that a small model's greedy answer ends within a few dozen tokens.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

from pydantic import BaseModel, Field

QUESTION = "What is the weather in Paris?"
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
ASKED = [{"role": "user", "content": QUESTION}]
RESULT = '{"sky": "rain", "degrees": 12}'


class Unit(str, Enum):
    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


class Place(BaseModel):
    city: Literal["Paris", "Rome", "Oslo"]
    unit: Unit


class GetWeather(BaseModel):
    """The weather at a place in the next days."""

    place: Place
    days: int = Field(ge=1, le=7)


class Forecast(BaseModel):
    """A schema with nested `$defs`, a number with limits and a value that may be null."""

    place: Place
    degrees: int = Field(ge=-40, le=50)
    warning: Literal["storm", "ice"] | None
