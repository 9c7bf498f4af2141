"""Bounds on what a request may hold: the front end refuses with them early, preprocess refuses for everybody else."""

from __future__ import annotations

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
MAX_TEMPERATURE = 2.0
INT32_MAX = 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
