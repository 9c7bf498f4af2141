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
from llm_pipeline.deployment import DeployedModel, Deployment, DeploymentError
from llm_pipeline.tensors import ENSEMBLE_MODEL, STAGE_MODELS, stage_model

_CONFIG = "config.pbtxt"


def lay_out(deployment: Deployment, source: Path, folder: Path) -> Path:
    """Makes `folder` anew from the models in `source`. Nothing is left of what was in it before."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".laying-out-", dir=folder.parent))
    try:
        draft.chmod(0o755)
        for model in deployment.models:
            if model.is_laid_out:
                _lay_out_model(model, source, draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
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
    parser = argparse.ArgumentParser(prog="python -m launcher.model_repository", description=lay_out.__doc__)
    parser.add_argument("deployment", type=Path, help="the deployment file")
    parser.add_argument("folder", type=Path, help="Triton's model repository, which is made anew")
    given = parser.parse_args(arguments)
    try:
        deployment = Deployment.load(given.deployment)
    except DeploymentError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if given.folder.exists() and not _is_ours(given.folder):
        sys.stderr.write(f"{given.folder} holds something that is no model; choose an empty folder or a new one.\n")
        return 2
    lay_out(deployment, REPOSITORY_ROOT / "model_repository", given.folder)
    return 0


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and all((path / _CONFIG).is_file() for path in folder.iterdir())


if __name__ == "__main__":
    sys.exit(main())
