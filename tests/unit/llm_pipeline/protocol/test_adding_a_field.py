"""docs/adding-a-field.md is enough: its edits, applied to a copy of the tree, bring a new field to the executor."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs" / "adding-a-field.md").read_text(encoding="utf-8")

SEND_A_REQUEST = """
import json, sys
from pathlib import Path

import llm_pipeline
assert Path(llm_pipeline.__file__).is_relative_to(Path.cwd()), "not the copy"

import tokenizers
from tokenizers import models

from frontend.request.parsing import validate
from frontend.request.schemas import COMPLETION_FORM
from frontend.request.to_parameters import completion_input, parameters_of
from llm_pipeline.protocol.capabilities import CAPABILITIES
from llm_pipeline.protocol.channel import BundleItem, PreparedItem
from llm_pipeline.protocol.channel_json import (
    bundle_from_json,
    bundle_to_json,
    prepared_bundle_from_json,
    prepared_bundle_to_json,
)
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.tensors import ENSEMBLE_INPUTS, parameters_from_arrays, parameters_to_arrays
from llm_pipeline.protocol.wire_json import read_prepared, request_from_json, request_to_arrays
from llm_pipeline.stages.preprocess import PreprocessStage
from llm_pipeline.text.tokenizer import Tokenizer
from tests.support.sample_requests import make_manifest


class RecordingExecutor:
    def submit(self, request):
        self.request = request


def sent(arrays):
    return {spec.name: values for spec, values in arrays}.get


def submit(executor_name, **fields):
    try:
        body = {"model": "m", "prompt": [1, 2], **fields}
        request, _ = validate(COMPLETION_FORM, body, max_choices=8, is_strict=True)
        (parameters,) = parameters_of(request, completion_input(request), "id")
        tokenizer = Tokenizer(tokenizers.Tokenizer(models.BPE()))
        stage = PreprocessStage(tokenizer, make_manifest(), CAPABILITIES[executor_name], default_max_tokens=16)
        alone, bundled = RecordingExecutor(), RecordingExecutor()
        received = parameters_from_arrays(sent(parameters_to_arrays(parameters)), request_id="id", new_key="key")
        prepared = read_prepared(sent(request_to_arrays(stage.prepare(received))))
        alone.submit(request_from_json(prepared))
        (item,) = bundle_from_json(bundle_to_json([BundleItem(0, parameters)]))
        prepared = prepared_bundle_to_json([PreparedItem(0, stage.prepare(item.parameters))])
        bundled.submit(prepared_bundle_from_json(prepared)[0].request)
        assert alone.request.sampling.top_n_sigma == bundled.request.sampling.top_n_sigma
        return alone.request.sampling.top_n_sigma
    except PipelineError as error:
        return f"{error.code} {error.param}"


print(json.dumps({
    "set": submit("cpu", top_n_sigma=1.5),
    "omitted": submit("cpu"),
    "out of range": submit("cpu", top_n_sigma=11),
    "not honored": submit("scripted", top_n_sigma=1.5),
    "capabilities": [row.as_document()["top_n_sigma"] for row in CAPABILITIES.values()],
    "is a tensor": "top_n_sigma" in {spec.name for spec in ENSEMBLE_INPUTS},
}))
"""


def apply_edits(tree: Path) -> None:
    """Applies the page's diff blocks. The context of each hunk must occur exactly once in its file."""
    for name, hunks in re.findall(r"```diff\n\+\+\+ (\S+)\n(.*?)```", PAGE, re.DOTALL):
        path = tree / name
        text = path.read_text(encoding="utf-8")
        for hunk in hunks.split("@@\n")[1:]:
            lines = hunk.splitlines()
            old = "".join(f"{line[1:]}\n" for line in lines if line.startswith(" "))
            new = "".join(f"{line[1:]}\n" for line in lines)
            assert text.count(f"\n{old}") == 1, f"{name}: {old}"
            text = text.replace(f"\n{old}", f"\n{new}")
        path.write_text(text, encoding="utf-8")


def run(tree: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def edited_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages after the page's edits and its command."""
    tree = tmp_path_factory.mktemp("tree").resolve()
    ignored = shutil.ignore_patterns("__pycache__", "playground")
    for package in ("llm_pipeline", "frontend", "model_repository", "tests/support"):
        shutil.copytree(ROOT / package, tree / package, ignore=ignored)
    shutil.copy(ROOT / "tests" / "__init__.py", tree / "tests" / "__init__.py")
    apply_edits(tree)
    (command,) = re.findall(r"```sh\npython (.*)\n```", PAGE)
    run(tree, *command.split())
    return tree


def test_edits_of_the_page_bring_the_field_to_the_executor(edited_tree: Path) -> None:
    assert json.loads(run(edited_tree, "-c", SEND_A_REQUEST)) == {
        "set": 1.5,
        "omitted": 0.0,
        "out of range": "value_out_of_range top_n_sigma",
        "not honored": "unsupported_parameter top_n_sigma",
        "capabilities": [True, False, False, False],
        "is a tensor": True,
    }


def test_command_adds_the_tensor_to_both_models(edited_tree: Path) -> None:
    tensor = 'name: "top_n_sigma" data_type: TYPE_FP32 dims: [ 1 ] optional: true'
    configs = {
        model: (edited_tree / "model_repository" / model / "config.pbtxt").read_text(encoding="utf-8")
        for model in ("preprocess", "ensemble")
    }
    assert all(tensor in config for config in configs.values())
    assert 'input_map { key: "top_n_sigma" value: "top_n_sigma" }' in configs["ensemble"]


def test_existing_field_is_named_only_in_the_page_s_places_and_executors() -> None:
    """An existing field stands in the page's places and in the executors that honor it, and nowhere else."""
    edited = set(re.findall(r"^\+\+\+ (\S+)$", PAGE, re.MULTILINE))
    generated = {"model_repository/preprocess/config.pbtxt", "model_repository/ensemble/config.pbtxt"}
    executors = {
        "llm_pipeline/executors/cpu/engine/logits_processor.py",
        "llm_pipeline/executors/tensorrt_llm/bindings.py",
        "llm_pipeline/executors/tensorrt_llm_pytorch/sampling_arguments.py",
    }
    folders = ("llm_pipeline", "frontend", "model_repository", "launcher")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".pbtxt")]
    named = {
        path.relative_to(ROOT).as_posix() for path in files if "repetition_penalty" in path.read_text(encoding="utf-8")
    }
    assert named == edited | generated | executors
