"""Names of all settings of the local stack, and the one that a misspelt name was probably meant to be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache

from frontend.settings import FrontendSettings
from launcher.gpu.launch import LaunchSettings
from launcher.settings import StackSettings
from llm_pipeline.runtime.settings import PipelineSettings
from llm_pipeline.runtime.tracing_settings import TracingSettings

# Variables of the Makefile that are no settings of a program.
_MAKE_VARIABLES = frozenset({"PYTHON", "VENV", "CLIENTS", "CLIENTS_PYTHON", "NEED_CLIENTS"})
_LIKENESS = 0.6  # difflib's ratio, of a name that was given to this program
_LIKENESS_IN_ENVIRONMENT = 0.85  # of a variable that may belong to another program
_SHORTEST_NAME = 4


@cache
def known_settings() -> frozenset[str]:
    """Returns the name of every setting, in capitals."""
    classes = (StackSettings, FrontendSettings, PipelineSettings, LaunchSettings, TracingSettings)
    return frozenset(name.upper() for settings in classes for name in settings.model_fields)


def similar_setting(name: str, likeness: float = _LIKENESS) -> str | None:
    """Returns the setting whose name is most like `name`, or has the same letters; None if there is none."""
    known = sorted(known_settings())
    letters = sorted(name.upper())
    anagrams = [setting for setting in known if sorted(setting) == letters]
    return next(iter(anagrams or difflib.get_close_matches(name.upper(), known, n=1, cutoff=likeness)), None)


def misspelt_settings(names: Iterable[str]) -> dict[str, str]:
    """Returns those of the environment's `names` that are almost a setting, with the setting.

    A setting's name with a word before or after it belongs to another program: HF_API_KEY, EXECUTOR_NUMBER.
    """
    found = {}
    for name in sorted(names):
        upper = name.upper()
        if len(name) < _SHORTEST_NAME or upper in known_settings():
            continue
        setting = similar_setting(name, _LIKENESS_IN_ENVIRONMENT)
        if setting and not upper.endswith(f"_{setting}") and not upper.startswith(f"{setting}_"):
            found[name] = setting
    return found


def unknown_make_variables(flags: str) -> list[str]:
    """Returns the variables on make's command line that are neither settings nor the Makefile's own.

    `flags` is MAKEFLAGS: options, ` -- `, and definitions with backslashes before spaces in values.
    """
    _options, _separator, definitions = f" {flags}".partition(" -- ")
    words = re.split(r"(?<!\\)\s+", definitions.strip())
    names = [word.partition("=")[0].rstrip(":+?") for word in words if "=" in word]
    return sorted({name for name in names if name.upper() not in known_settings() | _MAKE_VARIABLES})


def unknown_message(name: str) -> str:
    """Returns the error message for a name that is no setting."""
    similar = similar_setting(name)
    hint = f"Did you mean {similar}?" if similar else "--help lists the settings of a start, docs/settings.md all."
    return f"{name} is not a setting. {hint}"
