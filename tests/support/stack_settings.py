"""Settings in the environment of a test."""

from __future__ import annotations

from collections.abc import MutableMapping

from launcher.setting_names import known_settings


def unset_settings(environment: MutableMapping[str, str]) -> None:
    """Removes every setting, so that defaults apply."""
    for name in known_settings() & environment.keys():
        del environment[name]
