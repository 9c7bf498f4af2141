"""Lists settings by their former names. A program refuses to start with one: ignoring it would leave the default.

An entry is added when a setting is renamed, and stays until the next major release.
"""

from __future__ import annotations

from collections.abc import Iterable

RENAMED_SETTINGS = {
    "CPU_HANG_LIMIT_S": "CPU_HANG_TIMEOUT_S",
    "OWNER_LEASE_S": "CLIENT_LEASE_TIMEOUT_S",
    "READY_CHECK_S": "HEALTH_CHECK_INTERVAL_S",
    "SLOW_READER_S": "CLIENT_WRITE_TIMEOUT_S",
    "TRITON_HANG_LIMIT_S": "TRITON_HANG_TIMEOUT_S",
    "TRITON_LOST_S": "TRITON_UNRESPONSIVE_TIMEOUT_S",
    "TRTLLM_CANCEL_LIMIT_S": "TRTLLM_CANCEL_TIMEOUT_S",
    "TRTLLM_HANG_LIMIT_S": "TRTLLM_HANG_TIMEOUT_S",
    "WARM_UP_S": "IDLE_PROBE_INTERVAL_S",
}


def renamed_settings(names: Iterable[str]) -> list[str]:
    """Those of `names` that are former names of settings, in any letter case."""
    return sorted(name for name in names if name.upper() in RENAMED_SETTINGS)


def renamed_message(name: str) -> str:
    """The error message for a former name; the current name is in the letter case of `name`."""
    current = RENAMED_SETTINGS[name.upper()]
    return f"this setting was renamed. Set {current.lower() if name.islower() else current} instead"
