"""Engine directories over model directories: content, reuse, and builds that fail or are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from build_engine.artifact.engine_dir import build_lock
from build_engine.artifact.file_checks import file_problems
from build_engine.errors import EngineBusyError, EngineRefusedError
from build_engine.pytorch.building.run import BuildOptions
from llm_pipeline.engine_files.manifest import EngineManifest, PyTorchModel, sha256_of
from tests.support.build_engine_program import RecordingProgress
from tests.support.pytorch_builds import SHARDS, build, plan_for, write_model
from tests.support.small_disk import file_size_limit

COPIES = BuildOptions(has_copies=True)
FORCE = BuildOptions(force=True)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return write_model(tmp_path / "models" / "tiny-llama")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "engines"


def visible(directory: Path) -> list[str]:
    """Names of all files below, without lock files; none if there is no directory."""
    return sorted(path.name for path in directory.rglob("*") if not path.is_dir() and path.suffix != ".lock")


def test_a_build_links_to_the_model_and_describes_it(model_dir: Path, root: Path) -> None:
    result = build(model_dir, root, max_batch_size=8, max_num_tokens=64)
    engine_dir, manifest = result.engine_dir, EngineManifest.load(result.engine_dir)
    assert engine_dir == plan_for(model_dir, root, max_batch_size=8, max_num_tokens=64).engine_dir
    assert (result.manifest, result.reused, manifest.runtime) == (manifest, False, "pytorch")
    assert manifest.pytorch == PyTorchModel(
        architecture="LlamaForCausalLM",
        tensorrt_llm="1.2.1",
        sm=90,
        tp=1,
        pp=1,
        max_batch_size=8,
        max_num_tokens=64,
        is_linked=True,
    )
    assert (manifest.target, manifest.precision, manifest.model_name) == ("h100", "bf16", "tiny-llama")
    assert (manifest.limits.context_length, manifest.limits.vocab_size) == (128, 320)
    assert (manifest.tokens.bos, manifest.tokens.eos) == (1, [2, 0])
    assert (manifest.source.architecture, manifest.source.quantization) == ("LlamaForCausalLM", "bfloat16")
    assert file_problems(engine_dir, manifest) == []
    for name, file in manifest.files.items():
        path = engine_dir / name
        assert path.is_symlink() == (name not in ("tokenizer.json", "build.json"))
        assert not path.is_symlink() or Path(os.readlink(path)) == model_dir / name
        assert file.sha256 == sha256_of(path)
    assert sum(name.endswith(".safetensors") for name in manifest.files) == SHARDS
    assert json.loads((engine_dir / "build.json").read_text())["plan"]["accepted"] is True


def test_copies_are_independent_of_the_model(model_dir: Path, root: Path) -> None:
    linked, copied = build(model_dir, root / "a"), build(model_dir, root / "b", COPIES)
    assert copied.manifest.pytorch
    assert not copied.manifest.pytorch.is_linked
    same = copied.manifest.files.items() & linked.manifest.files.items()
    assert linked.manifest.files.keys() - dict(same) == {"build.json"}  # which has the directory's path
    assert copied.manifest.source == linked.manifest.source
    shutil.rmtree(model_dir)
    assert not any(path.is_symlink() for path in copied.engine_dir.iterdir())
    assert file_problems(copied.engine_dir, copied.manifest) == []
    missing = file_problems(linked.engine_dir, linked.manifest)
    assert len(missing) == len(linked.manifest.files) - 2
    assert missing[0] == f"config.json is missing: it links to {model_dir / 'config.json'}, which is not there"


@pytest.mark.parametrize("options", [BuildOptions(), COPIES], ids=["links", "copies"])
def test_a_second_build_has_nothing_to_do(model_dir: Path, root: Path, options: BuildOptions) -> None:
    first = build(model_dir, root, options)
    inode = first.engine_dir.stat().st_ino
    again = build(model_dir, root, options)
    assert (again.reused, again.manifest) == (True, first.manifest)
    assert first.engine_dir.stat().st_ino == inode
    assert not build(model_dir, root, BuildOptions(force=True, has_copies=options.has_copies)).reused


def test_copies_replace_links_and_serve_as_well_as_links(model_dir: Path, root: Path) -> None:
    progress = RecordingProgress()
    build(model_dir, root)
    assert not build(model_dir, root, COPIES, progress).reused
    assert "Rebuilding: it has links and --copy was given." in progress.notes
    assert build(model_dir, root).reused


def test_links_follow_a_model_that_was_moved(model_dir: Path, root: Path, tmp_path: Path) -> None:
    first = build(model_dir, root)
    moved = tmp_path / "disk-2" / "tiny-llama"
    moved.parent.mkdir()
    model_dir.rename(moved)
    progress = RecordingProgress()
    again = build(moved, root, None, progress)
    assert (again.engine_dir, again.reused) == (first.engine_dir, False)
    assert f"Rebuilding: its links do not point to {moved}." in progress.notes
    assert file_problems(again.engine_dir, again.manifest) == []


def test_changed_weights_are_refused_without_force(model_dir: Path, root: Path) -> None:
    first = build(model_dir, root)
    write_model(model_dir, seed=12)
    with pytest.raises(EngineRefusedError, match=r"built from other files than .* has now\..*--name.*--force"):
        build(model_dir, root)
    assert EngineManifest.load(first.engine_dir) == first.manifest
    again = build(model_dir, root, FORCE)
    assert again.manifest.source.sha256 != first.manifest.source.sha256
    assert file_problems(again.engine_dir, again.manifest) == []


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (lambda path: (path / "tokenizer.json").write_text("{}"), "tokenizer.json has 2 bytes instead of"),
        (lambda path: (path / "extra.txt").touch(), "extra.txt is not part of the engine"),
        (lambda path: (path / "config.json").unlink(), "config.json is missing"),
    ],
    ids=["changed", "extra", "missing"],
)
def test_a_damaged_directory_is_rebuilt(
    model_dir: Path, root: Path, damage: Callable[[Path], object], note: str
) -> None:
    first, progress = build(model_dir, root), RecordingProgress()
    damage(first.engine_dir)
    assert not build(model_dir, root, None, progress).reused
    assert any(note in line for line in progress.notes)
    assert file_problems(first.engine_dir, EngineManifest.load(first.engine_dir)) == []


def test_a_directory_without_a_readable_manifest_is_replaced(model_dir: Path, root: Path) -> None:
    first = build(model_dir, root)
    (first.engine_dir / "manifest.json").write_text("{")
    assert not build(model_dir, root).reused
    assert EngineManifest.load(first.engine_dir).files == first.manifest.files


def test_the_model_itself_is_never_replaced(root: Path) -> None:
    """With --root above the model and a matching name, a build could otherwise remove what it links to."""
    engine_dir = plan_for(write_model(root / "x"), root).engine_dir
    assert engine_dir
    inside = engine_dir / "x"
    shutil.copytree(root / "x", inside)
    with pytest.raises(EngineRefusedError, match="The model is inside the engine directory"):
        build(inside, root, FORCE)
    assert (inside / "config.json").exists()


def test_only_one_build_at_a_time_writes_a_directory(model_dir: Path, root: Path) -> None:
    engine_dir = plan_for(model_dir, root).engine_dir
    assert engine_dir
    progress = RecordingProgress()
    with build_lock(engine_dir.absolute(), lambda: None), pytest.raises(EngineBusyError):
        build(model_dir, root, BuildOptions(lock_wait_s=0.3), progress)
    assert progress.notes == [f"Another build of {engine_dir.name} is running. Waiting for it."]


# --- Failures --------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing(model_dir: Path, root: Path) -> None:
    with file_size_limit(1000), pytest.raises(OSError, match="File too large"):
        build(model_dir, root, COPIES)
    assert visible(root) == []
    assert not build(model_dir, root, COPIES).reused


def test_a_failed_rebuild_keeps_the_previous_directory(model_dir: Path, root: Path) -> None:
    first = build(model_dir, root, COPIES)
    with file_size_limit(1000), pytest.raises(OSError, match="File too large"):
        build(model_dir, root, BuildOptions(force=True, has_copies=True))
    assert file_problems(first.engine_dir, EngineManifest.load(first.engine_dir)) == []


class SmallDisk:
    def free_disk_bytes(self, directory: Path) -> int:
        assert directory.is_dir()
        return 1 << 20

    def available_memory_bytes(self) -> int | None:
        return None


def test_a_disk_that_is_too_small_is_refused_before_the_model_is_read(model_dir: Path, root: Path) -> None:
    with pytest.raises(EngineRefusedError, match=r"1 MiB free, a copy of the model needs \d+ MiB.*without --copy"):
        build(model_dir, root, BuildOptions(has_copies=True, resources=SmallDisk()))
    assert not root.exists()
    build(model_dir, root, BuildOptions(resources=SmallDisk()))


_KILLED_BUILD = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from build_engine.pytorch.building.run import BuildOptions
from tests.support.pytorch_builds import build

class Killer:
    def __init__(self, label): self.label = label
    @contextmanager
    def step(self, label, total=None):
        def advance(amount):
            if label.startswith(self.label): os.kill(os.getpid(), signal.SIGKILL)
        yield advance
    def note(self, text):
        if text.startswith(self.label): os.kill(os.getpid(), signal.SIGKILL)

model_dir, root, label, has_copies = sys.argv[1:]
build(Path(model_dir), Path(root), BuildOptions(has_copies=has_copies == "copies"), Killer(label))
"""


@pytest.mark.parametrize(
    ("label", "kind"),
    [("hash", "links"), ("copy", "copies"), ("Load test skipped", "links"), ("Load test skipped", "copies")],
    ids=["while-hashing", "while-copying", "before-the-manifest-of-links", "before-the-manifest-of-copies"],
)
def test_a_killed_build_publishes_nothing_and_the_next_one_removes_its_files(
    model_dir: Path, root: Path, label: str, kind: str
) -> None:
    command = [sys.executable, "-c", _KILLED_BUILD, str(model_dir), str(root), label, kind]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    engine_dir = plan_for(model_dir, root).engine_dir
    assert engine_dir
    assert not engine_dir.exists()
    built = build(model_dir, root, BuildOptions(has_copies=kind == "copies"))
    assert sorted(path.name for path in engine_dir.parent.iterdir()) == [f".{engine_dir.name}.lock", engine_dir.name]
    assert file_problems(built.engine_dir, built.manifest) == []
