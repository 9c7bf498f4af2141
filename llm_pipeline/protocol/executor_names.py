"""The names that the setting EXECUTOR takes."""

from __future__ import annotations

from typing import Literal, TypeAlias

ExecutorName: TypeAlias = Literal["cpu", "tensorrt_llm", "tensorrt_llm_pytorch", "scripted"]
