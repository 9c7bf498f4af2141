"""Installs the fake so that `import tensorrt_llm` finds it, and removes it again."""

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
_FAKED = (
    "tensorrt_llm",
    "torch",
    "llm_pipeline.executors.tensorrt_llm.bindings",
    "llm_pipeline.executors.tensorrt_llm_pytorch.bindings",
)


def write_script(path: Path, **script: Any) -> Path:
    """Writes a script file; `script` are fields of tests/fakes/tensorrt_llm/script.py."""
    path.write_text(json.dumps(script))
    return path


@contextmanager
def fake_tensorrt_llm(script: Path | None = None) -> Iterator[ModuleType]:
    """Replaces `tensorrt_llm` and `torch` by the fakes, whatever is installed. Yields the module of the bindings.

    Ends the engines that tests left running: some of them step without a pause, and slow down every later test.
    """
    installed = _remove_modules()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FAKES))
        if script is not None:
            patch.setenv("FAKE_TENSORRT_LLM", str(script))
        from tensorrt_llm.bindings import executor  # type: ignore[import-not-found, unused-ignore]

        try:
            yield executor
        finally:
            _end_engines()
            _remove_modules()
    sys.modules.update(installed)


def _remove_modules() -> dict[str, ModuleType]:
    """Removes and returns the modules, also as package attributes: `from package import module` reads those first."""
    removed = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_faked(name)}
    for name in removed:
        package, _, attribute = name.rpartition(".")
        if package in sys.modules:
            vars(sys.modules[package]).pop(attribute, None)
    return removed


def _end_engines() -> None:
    for name in ("tensorrt_llm.engine", "tensorrt_llm.pytorch_engine"):
        for engine in sys.modules[name].LIVE if name in sys.modules else ():
            engine.end()


def _is_faked(name: str) -> bool:
    return any(name == faked or name.startswith(f"{faked}.") for faked in _FAKED)
