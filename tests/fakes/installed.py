"""Puts the stand-in where `import tensorrt_llm` finds it, and takes it away again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FAKES = Path(__file__).parent
_OURS = ("tensorrt_llm", "torch", "llm_pipeline.executors.tensorrt_llm.bindings")


def write_script(path: Path, **script: Any) -> Path:
    """A script file; fields of tests/fakes/tensorrt_llm/script.py."""
    path.write_text(json.dumps(script))
    return path


@contextmanager
def fake_tensorrt_llm(script: Path | None = None) -> Iterator[ModuleType]:
    """`tensorrt_llm` and `torch` are the stand-ins inside, whatever is installed; yields the bindings' module."""
    outside = _take_out()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FAKES))
        if script is not None:
            patch.setenv("FAKE_TENSORRT_LLM", str(script))
        from tensorrt_llm.bindings import executor

        try:
            yield executor
        finally:
            _take_out()
    sys.modules.update(outside)


def _take_out() -> dict[str, ModuleType]:
    """Forget the modules, in their packages too: `from package import module` looks there first."""
    found = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_ours(name)}
    for name in found:
        package, _, attribute = name.rpartition(".")
        if package in sys.modules:
            vars(sys.modules[package]).pop(attribute, None)
    return found


def _is_ours(name: str) -> bool:
    return any(name == ours or name.startswith(f"{ours}.") for ours in _OURS)
