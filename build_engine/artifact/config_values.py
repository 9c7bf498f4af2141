"""Checked access to the values of config.json. Every error message has the key and its value."""

from __future__ import annotations

import math
from typing import Any

from build_engine.artifact.model_directory import CONFIG_NAME
from build_engine.errors import EngineRefusedError


class ConfigValues:
    """The values, with defaults for keys that are absent or null."""

    def __init__(self, values: dict[str, Any], defaults: dict[str, Any], prefix: str = "") -> None:
        self._values = values
        self._defaults = defaults
        self._prefix = prefix  # of keys in messages

    def value(self, key: str) -> Any:
        """The value or its default; None if it has neither."""
        value = self._values.get(key)
        return self._defaults.get(key) if value is None else value

    def optional(self, key: str) -> Any:
        """Like `value`, but null is a value of its own: None."""
        return self._values[key] if key in self._values else self._defaults.get(key)

    def whole(self, key: str) -> int:
        """A positive integer."""
        value = self.value(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._invalid(key, value, "an integer above 0")
        return value

    def whole_or_none(self, key: str) -> int | None:
        """A positive integer; None if it is absent or null."""
        return None if self.value(key) is None else self.whole(key)

    def count(self, key: str, default: int = 0) -> int:
        """An integer of at least 0; `default` if it is absent or null."""
        value = self.value(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._invalid(key, value, "an integer of at least 0")
        return value

    def positive(self, key: str) -> float:
        """A positive finite number."""
        value = self.value(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not (math.isfinite(value) and value > 0):
            raise self._invalid(key, value, "a number above 0")
        return float(value)

    def table(self, key: str) -> ConfigValues | None:
        """An object without defaults; None if it is absent, null or empty."""
        value = self.value(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self._invalid(key, value, "an object")
        return ConfigValues(value, {}, f"{self._prefix}{key}.")

    def require(self, key: str, allowed: tuple[Any, ...], reader: str = "the CPU engine") -> None:
        """Raises EngineRefusedError for another value than those that `reader` supports. None is allowed."""
        if (value := self.value(key)) is not None and value not in allowed:
            raise EngineRefusedError(
                f"{CONFIG_NAME} has {self._prefix}{key} = {value!r}, which {reader} does not support. "
                f"It supports {', '.join(['null', *map(repr, allowed)])}. Use another model."
            )

    def _invalid(self, key: str, value: object, expected: str) -> EngineRefusedError:
        return EngineRefusedError(
            f"{CONFIG_NAME} has {self._prefix}{key} = {value!r}; it must be {expected}. Use the model's original file."
        )
