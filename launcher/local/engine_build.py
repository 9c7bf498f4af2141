"""Builds the engine of a start without ENGINE_DIR: from MODEL, or from the default model.

The build runs in a process of its own (`python -m launcher.local.engine_build`): its memory is free before Triton
starts, and a signal can end it. Progress goes to its standard error, and the result, one JSON object, to its standard
output.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from build_engine.cli.progress_bar import TerminalProgress
from build_engine.cpu.build import BuildRequest, build_engine
from build_engine.cpu.default_model import DefaultModelMissingError, download_default_model, find_model
from build_engine.errors import BuildEngineError, OtherModelError
from build_engine.model_names import slug
from build_engine.targets.registry import CPU
from launcher.local.errors import StartCancelledError, StartError
from launcher.local.processes import python_program
from launcher.settings import StackSettings
from llm_pipeline.engine_files.manifest import EngineManifest, ManifestError

_POLL_PERIOD_S = 0.1


def prepare_engine(
    settings: StackSettings, run_dir: Path, cancelled: threading.Event, *, python: str = sys.executable
) -> StackSettings:
    """Builds the CPU engine in RUN_DIR/engines, or reuses a valid one; returns the settings that serve it.

    `python` is the interpreter of the build process. Raises StartError if the build fails, StartCancelledError if
    `cancelled` is set first.
    """
    command = [*python_program("launcher.local.engine_build", python), str(run_dir.absolute() / "engines")]
    if settings.model is not None:
        command += [f"--model={settings.model.absolute()}", f"--name={engine_name(settings)}"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as build:
        while build.poll() is None:
            if cancelled.wait(_POLL_PERIOD_S):
                build.terminate()
                raise StartCancelledError
        assert build.stdout is not None
        output = build.stdout.read()
    return _served(settings, _parse(output, build.returncode))


def engine_name(settings: StackSettings) -> str:
    """Returns the name of MODEL's engine: MODEL_NAME if it is set, else the name of the file or directory.

    Symbolic links are not followed: those of a model hub's cache point at files that are named by their hash.
    """
    assert settings.model is not None
    if "model_name" in settings.model_fields_set:
        name = settings.model_name
    else:
        path = settings.model if settings.model.name not in ("", "..") else settings.model.resolve()
        name = path.stem if path.suffix == ".gguf" else path.name
    return slug(name) or "model"


def _served(settings: StackSettings, engine_dir: Path) -> StackSettings:
    updates: dict[str, object] = {"engine_dir": engine_dir}
    if settings.model is not None and "model_name" not in settings.model_fields_set:
        updates["model_name"] = EngineManifest.load(engine_dir).model_name
    return settings.model_copy(update=updates)


def _parse(output: str, status: int) -> Path:
    try:
        result = json.loads(output)
    except ValueError:
        raise StartError(
            f"The process that builds the engine ended with status {status} and without a result. If there is no "
            "error above, the kernel may have ended it for lack of memory: free some, and start again."
        ) from None
    if "error" in result:
        raise StartError(result["error"])
    return Path(result["engine_dir"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds, and prints the result: the engine's directory or the error. The exit status is 0 in both cases."""
    parser = argparse.ArgumentParser(prog="python -m launcher.local.engine_build")
    parser.add_argument("root", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--name")
    options = parser.parse_args(arguments)
    try:
        result = {"engine_dir": str(_build(options.root, options.model, options.name))}
    except OtherModelError as error:
        result = {"error": f"{error.args[0].split('. ')[0]}. Set MODEL_NAME to another name for MODEL={options.model}."}
    except (BuildEngineError, ManifestError) as error:
        result = {"error": str(error) if options.model is None else f"MODEL={options.model}: {error}"}
    except OSError as error:  # a full disk, a directory that cannot be written
        result = {"error": f"{error.filename}: {error.strerror}." if error.filename else f"{error}."}
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def _build(root: Path, model: Path | None, name: str | None) -> Path:
    with TerminalProgress(Console(stderr=True)) as progress:
        try:
            file = find_model(model)
        except DefaultModelMissingError:
            file = download_default_model(root.parent / "models", progress)
        request = BuildRequest(model=file, target=CPU, precision=CPU.default_precision, name=name, root=root)
        return build_engine(request, progress).engine_dir


if __name__ == "__main__":
    sys.exit(main())
