"""Renders a Triton model repository with an ensemble and its three stages for each model of a deployment.

The copies of `model_repository/` are renamed, and each model's settings become `parameters` of its config.pbtxt, which
the stages read in preference to the environment. `python -m launcher.model_repository FILE FOLDER` renders one for a
Triton that is started by other means.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.settings import MODEL_REPOSITORY
from llm_pipeline.protocol.tensors import ENSEMBLE_MODEL, STAGE_MODELS, stage_model
from llm_pipeline.runtime.deployment import DeployedModel, Deployment
from llm_pipeline.runtime.deployment_errors import DeploymentError

_CONFIG = "config.pbtxt"
# Marks a folder as rendered here, so that it may be replaced. Triton ignores files at this level.
_MARKER = ".made-by-triton-completions"


def render_model_repository(deployment: Deployment, source: Path, folder: Path) -> Path:
    """Replaces `folder` by a model repository rendered from the models in `source`, and returns it.

    Raises OSError, and leaves the folder unchanged, if it is not writable or is a mount point.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=".rendering-", dir=folder.parent))
    try:
        draft = workspace / "new"
        draft.mkdir()
        draft.chmod(0o755)
        (draft / _MARKER).touch()
        for model in deployment.models:
            if model.has_own_ensemble:
                _render_model(model, deployment.adapters_of(model), source, draft)
        if folder.exists():
            folder.rename(workspace / "old")
        draft.rename(folder)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return folder


def _render_model(model: DeployedModel, adapters: Mapping[str, Path], source: Path, folder: Path) -> None:
    names = {stage: stage_model(model.ensemble, stage) for stage in STAGE_MODELS}
    names[ENSEMBLE_MODEL] = model.ensemble
    for name, own_name in names.items():
        shutil.copytree(source / name, folder / own_name, ignore=shutil.ignore_patterns("__pycache__"))
        config = folder / own_name / _CONFIG
        text = _renamed(config.read_text(encoding="utf-8"), names)
        if name != ENSEMBLE_MODEL:
            text += _parameters(model, adapters)
        config.write_text(text, encoding="utf-8")


def _renamed(text: str, names: dict[str, str]) -> str:
    """Returns the config with this model's names: its own, and in an ensemble those of its steps."""
    return re.sub(
        r'^(\s*(?:name|model_name): )"([a-z]+)"$',
        lambda match: f'{match[1]}"{names.get(match[2], match[2])}"',
        text,
        flags=re.MULTILINE,
    )


def _parameters(model: DeployedModel, adapters: Mapping[str, Path]) -> str:
    values: dict[str, Any] = model.settings.model_dump(mode="json", exclude_unset=True)
    if model.engine_dir is not None:
        values["engine_dir"] = str(model.engine_dir)
    if model.executor is not None:
        values["executor"] = model.executor
    if model.default_max_tokens is not None:
        values["default_max_tokens"] = model.default_max_tokens
    if adapters:
        values["trtllm_lora_adapters"] = json.dumps({name: str(path) for name, path in adapters.items()})
    return "".join(
        f"parameters {{ key: {_quoted(name)} value: {{ string_value: {_quoted(str(value))} }} }}\n"
        for name, value in values.items()
        if value is not None
    )


def _quoted(text: str) -> str:
    """Quotes a string for protobuf's text format, which accepts JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status: 0, or 2 for an invalid deployment or folder."""
    parser = argparse.ArgumentParser(
        prog="python -m launcher.model_repository", description=render_model_repository.__doc__
    )
    parser.add_argument("deployment", type=Path, help="the deployment file")
    parser.add_argument("folder", type=Path, help="the model repository to write; an existing one is replaced")
    options = parser.parse_args(arguments)
    try:
        deployment = Deployment.load(options.deployment)
    except DeploymentError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    try:
        problem = _find_problem(options.folder)
        if problem is None:
            render_model_repository(deployment, MODEL_REPOSITORY, options.folder)
    except OSError as error:
        problem = f"{options.folder} is not writable: {error.strerror or error}."
    if problem is not None:
        sys.stderr.write(f"{problem}\n")
        return 2
    return 0


def _find_problem(folder: Path) -> str | None:
    if not folder.exists():
        return None
    if not _is_replaceable(folder):
        return f"{folder} contains files that this program did not write. Choose an empty or a new folder."
    if folder.is_mount():
        return f"{folder} is a mount point, which cannot be replaced. Use a folder in it, such as {folder / 'models'}."
    return None


def _is_replaceable(folder: Path) -> bool:
    """Whether the folder is empty or was rendered by this program."""
    return folder.is_dir() and ((folder / _MARKER).is_file() or not any(folder.iterdir()))


if __name__ == "__main__":
    sys.exit(main())
