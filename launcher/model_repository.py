"""Lays out a Triton model repository with an ensemble and its three stages for each model of a deployment.

Each copy of the repository's own models gets names of its own, and what is particular to its model as `parameters` of
its config.pbtxt, which its process reads before the environment. `python -m launcher.model_repository FILE FOLDER` does
it for a Triton that somebody else starts.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.settings import REPOSITORY_ROOT
from llm_pipeline.protocol.tensors import ENSEMBLE_MODEL, STAGE_MODELS, stage_model
from llm_pipeline.runtime.deployment import DeployedModel, Deployment
from llm_pipeline.runtime.deployment_errors import DeploymentError

_CONFIG = "config.pbtxt"
# Says that a folder was made here, so that it may be made anew. Triton looks at folders only.
_MARKER = ".made-by-triton-completions"


def render_model_repository(deployment: Deployment, source: Path, folder: Path) -> Path:
    """Makes `folder` anew from the models in `source`. Nothing is left of what was in it before.

    OSError when it can't be made, or can't be replaced because something is mounted there; it stays as it was, then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=".laying-out-", dir=folder.parent))
    try:
        draft = workspace / "new"
        draft.mkdir()
        draft.chmod(0o755)
        (draft / _MARKER).touch()
        for model in deployment.models:
            if model.is_local:
                _lay_out_model(model, source, draft)
        if folder.exists():
            folder.rename(workspace / "old")
        draft.rename(folder)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return folder


def _lay_out_model(model: DeployedModel, source: Path, folder: Path) -> None:
    names = {stage: stage_model(model.ensemble, stage) for stage in STAGE_MODELS}
    names[ENSEMBLE_MODEL] = model.ensemble
    for name, own_name in names.items():
        shutil.copytree(source / name, folder / own_name, ignore=shutil.ignore_patterns("__pycache__"))
        config = folder / own_name / _CONFIG
        text = _renamed(config.read_text(encoding="utf-8"), names)
        if name != ENSEMBLE_MODEL:
            text += _parameters(model)
        config.write_text(text, encoding="utf-8")


def _renamed(text: str, names: dict[str, str]) -> str:
    """The config with the names of this model: its own, and in an ensemble those of its steps."""
    return re.sub(
        r'^(\s*(?:name|model_name): )"([a-z]+)"$',
        lambda found: f'{found[1]}"{names.get(found[2], found[2])}"',
        text,
        flags=re.MULTILINE,
    )


def _parameters(model: DeployedModel) -> str:
    values: dict[str, Any] = model.settings.model_dump(mode="json", exclude_unset=True)
    if model.engine_dir is not None:
        values["engine_dir"] = str(model.engine_dir)
    if model.executor is not None:
        values["executor"] = model.executor
    if model.default_max_tokens is not None:
        values["default_max_tokens"] = model.default_max_tokens
    return "".join(
        f"parameters {{ key: {_quoted(name)} value: {{ string_value: {_quoted(str(value))} }} }}\n"
        for name, value in values.items()
        if value is not None
    )


def _quoted(text: str) -> str:
    """As protobuf's text format has it, which takes JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program. Its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m launcher.model_repository", description=render_model_repository.__doc__
    )
    parser.add_argument("deployment", type=Path, help="the deployment file")
    parser.add_argument("folder", type=Path, help="Triton's model repository, which is made anew")
    given = parser.parse_args(arguments)
    try:
        deployment = Deployment.load(given.deployment)
    except DeploymentError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    try:
        problem = _find_problem(given.folder)
        if problem is None:
            render_model_repository(deployment, REPOSITORY_ROOT / "model_repository", given.folder)
    except OSError as error:
        problem = f"{given.folder} can't be written: {error.strerror or error}."
    if problem is not None:
        sys.stderr.write(f"{problem}\n")
        return 2
    return 0


def _find_problem(folder: Path) -> str | None:
    if not folder.exists():
        return None
    if not _is_ours(folder):
        return f"{folder} holds what was not made by this program; choose an empty folder or a new one."
    if folder.is_mount():
        return f"{folder} is a mount point, which can't be made anew; name a folder in it, such as {folder / 'models'}."
    return None


def _is_ours(folder: Path) -> bool:
    """Empty, or made by `lay_out`: only such a folder may be replaced."""
    return folder.is_dir() and ((folder / _MARKER).is_file() or not any(folder.iterdir()))


if __name__ == "__main__":
    sys.exit(main())
