"""The files that an engine directory takes from a model directory, and incomplete directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_engine.errors import EngineRefusedError
from build_engine.pytorch.building.source_files import find_source_files
from tests.support.hugging_face_models import TinyDirectory

INDEX = "model.safetensors.index.json"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
Damage = Callable[[Path], object]


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    directory = TinyDirectory(type_name="BF16", shards=3).write(tmp_path / "tiny-llama")
    (directory / "generation_config.json").write_text("{}")
    return directory


def test_weights_are_those_of_the_index_and_code_is_left_out(model_dir: Path) -> None:
    shards = sorted(path.name for path in model_dir.glob("*.safetensors"))
    for name in ("consolidated.safetensors", "modeling_tiny.py", "pytorch_model.bin", "README.md", ".gitattributes"):
        (model_dir / name).write_text("not for the engine")
    for name in ("tokenizer_config.json", "hf_quant_config.json", "pytorch_model.bin.index.json", "build.json"):
        (model_dir / name).write_text("{}")
    (model_dir / "original").mkdir()
    found = find_source_files(model_dir)
    assert list(found.weights) == shards
    assert set(found.others) == {
        *("config.json", "generation_config.json", "tokenizer_config.json", "hf_quant_config.json"),
        INDEX,
    }
    assert found.size_bytes == sum(path.stat().st_size for path in found.paths.values())


def test_a_single_file_is_preferred_to_an_index(model_dir: Path) -> None:
    TinyDirectory(type_name="BF16").write(model_dir)
    found = find_source_files(model_dir)
    assert found.weights == ("model.safetensors",)
    assert INDEX not in found.others


def test_a_link_to_the_directory_is_resolved_and_links_to_files_are_kept(tmp_path: Path, model_dir: Path) -> None:
    """As in the cache of huggingface_hub, where a snapshot links to blobs: its file names are the model's."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in list(model_dir.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(Path("..") / "blobs" / path.name)
    (tmp_path / "current").symlink_to(model_dir)
    found = find_source_files(tmp_path / "current")
    assert found.directory == model_dir
    assert set(found.paths.values()) >= {model_dir / "config.json", model_dir / INDEX}


def replace_by_broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/blob")


def pickle_only(model_dir: Path) -> None:
    for path in [*model_dir.glob("*.safetensors"), model_dir / INDEX]:
        path.unlink()
    (model_dir / "pytorch_model-00001-of-00002.bin").write_bytes(b"PK")


def sentencepiece_only(model_dir: Path) -> None:
    (model_dir / "tokenizer.json").unlink()
    (model_dir / "tokenizer.model").write_bytes(b"\n\x0e")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (pickle_only, r"pickled weights only \(pytorch_model-00001.*save_pretrained"),
        (sentencepiece_only, r"only tokenizer\.model, and this server reads tokenizer\.json\. Save it with"),
        (lambda path: (path / "tokenizer.json").unlink(), r"no tokenizer, and this server reads"),
        (lambda path: (path / "config.json").unlink(), r"has no config\.json"),
        (lambda path: (path / INDEX).unlink(), r"has model-00001.*Download the index too"),
        (
            lambda path: (path / "model-00002-of-00003.safetensors").unlink(),
            r"lacks 1 of the 3 files .* such as model-00002-of-00003\.safetensors\. Download the missing files",
        ),
        (
            lambda path: replace_by_broken_link(path / "model-00003-of-00003.safetensors"),
            r"model-00003.* links to /nowhere/blob, which does not exist\. Download the model again, or mount",
        ),
        (lambda path: replace_by_broken_link(path / "config.json"), r"config\.json links to /nowhere/blob"),
        (lambda path: replace_by_broken_link(path / "tokenizer.json"), r"tokenizer\.json links to /nowhere/blob"),
        (lambda path: replace_by_broken_link(path / INDEX), r"index\.json links to /nowhere/blob"),
        (
            lambda path: (path / "model-00001-of-00003.safetensors").write_text(LFS_POINTER),
            r"model-00001.* is a pointer of Git LFS, .*`git lfs pull`",
        ),
        (lambda path: (path / "tokenizer.json").write_text(LFS_POINTER), r"tokenizer\.json is a pointer of Git LFS"),
        (lambda path: (path / "manifest.json").write_text("{}"), r"is an engine directory\. Name the model"),
        (
            lambda path: (path / INDEX).write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}})),
            r"does not list safetensors files of that directory",
        ),
        (lambda path: (path / INDEX).write_text("[]"), r"is not a JSON object"),
    ],
    ids=[
        *("pickled", "sentencepiece", "no-tokenizer", "no-config", "no-index", "missing-shard", "broken-link"),
        *("config-link", "tokenizer-link", "index-link", "lfs-weights", "lfs-tokenizer", "engine", "escape", "index"),
    ],
)
def test_an_incomplete_directory_is_refused_with_the_remedy(model_dir: Path, damage: Damage, words: str) -> None:
    find_source_files(model_dir)
    damage(model_dir)
    with pytest.raises(EngineRefusedError, match=words) as refusal:
        find_source_files(model_dir)
    assert "\n" not in str(refusal.value)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineRefusedError, match="No model directory"):
        find_source_files(tmp_path / "nowhere")


@given(weight_map=st.dictionaries(st.text(max_size=8), st.text(max_size=12) | st.integers() | st.none(), max_size=4))
def test_no_index_leads_out_of_the_directory(
    tmp_path_factory: pytest.TempPathFactory, weight_map: dict[str, object]
) -> None:
    directory = TinyDirectory(type_name="BF16").write(tmp_path_factory.mktemp("model"))
    (directory / "model.safetensors").rename(directory / "a.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map | {"other": "a.safetensors"}}))
    try:
        found = find_source_files(directory)
    except EngineRefusedError:
        return
    assert {path.parent for path in found.paths.values()} == {directory}
