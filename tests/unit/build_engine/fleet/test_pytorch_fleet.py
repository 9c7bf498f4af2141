"""The `fleet` command with model directories for the PyTorch runtime."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from build_engine.fleet.file import read_fleet_file
from build_engine.fleet.jobs import make_jobs
from build_engine.fleet.runner import FleetOutcome, run_fleet
from build_engine.progress import Advance, SilentProgress
from llm_pipeline.engine_files.manifest import EngineManifest
from tests.fakes.tensorrt_llm_build import H100, FakeNvml
from tests.support.build_engine_program import RecordingProgress, run_program
from tests.support.pytorch_builds import write_model
from tests.support.small_disk import file_size_limit
from tests.support.tiny_models import TinyModel, write_gguf

FLEET = """
root = "engines"
[defaults]
max_seq_len = 64
runtime = "pytorch"
[[engines]]
model = ["one", "two"]
target = ["h100", "l4"]
[[engines]]
model = "one"
target = "h100"
name = "copied"
copy = true
[[engines]]
model = "tiny.gguf"
target = "cpu"
"""
Fleet = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_model(tmp_path / "one")
    write_model(tmp_path / "two", seed=12)
    write_gguf(tmp_path / "tiny.gguf", TinyModel())
    return tmp_path


@pytest.fixture
def fleet(directory: Path, capfd: pytest.CaptureFixture[str]) -> Fleet:
    def run(text: str, *options: str) -> tuple[int, list[dict[str, Any]]]:
        (directory / "fleet.toml").write_text(text)
        status = run_program("fleet", directory / "fleet.toml", *options, "--json", nvml=FakeNvml((H100,)))
        return status, json.loads(capfd.readouterr().out)["engines"]

    return run


def outcomes(engines: list[dict[str, Any]]) -> list[str]:
    return [engine["outcome"] for engine in engines]


def test_a_fleet_builds_model_directories_for_any_gpu_beside_cpu_engines(fleet: Fleet) -> None:
    status, engines = fleet(FLEET, "--jobs", "3")
    assert (status, outcomes(engines)) == (0, ["built"] * 6)
    assert [engine["runtime"] for engine in engines] == ["pytorch"] * 5 + ["cpu"]
    manifests = [EngineManifest.load(Path(engine["engine_dir"])) for engine in engines]
    assert [manifest.target for manifest in manifests] == ["h100", "l4", "h100", "l4", "h100", "cpu"]
    assert [manifest.pytorch.is_linked for manifest in manifests if manifest.pytorch] == [True] * 4 + [False]
    assert {manifest.limits.context_length for manifest in manifests} == {64}
    status, engines = fleet(FLEET)
    assert (status, outcomes(engines)) == (0, ["reused"] * 6)


def test_a_dry_run_of_model_directories_builds_nothing(fleet: Fleet, directory: Path) -> None:
    status, engines = fleet(FLEET, "--dry-run")
    assert (status, outcomes(engines)) == (0, ["would build"] * 6)
    assert not (directory / "engines").exists()


def test_auto_selects_the_runtime_of_each_release(fleet: Fleet) -> None:
    entry = '[[engines]]\nmodel = "one"\ntarget = "h100"\nprecision = "bf16"\n'
    status, engines = fleet(f'root = "engines"\n{entry}{entry}tensorrt_llm = "1.3.0"\n', "--dry-run")
    assert (status, [engine["runtime"] for engine in engines]) == (0, ["engine", "pytorch"])


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('runtime = "pytorch"\ntp = 3', "4 attention heads"),
        ('runtime = "engine"\ncopy = true', "copy applies to the PyTorch runtime"),
        ('runtime = "engine"\nep = 2', "--ep 2 is an option of the PyTorch runtime"),
        ('runtime = "pytorch"\nprecision = "fp8"', "The weights are bf16"),
    ],
    ids=["tp", "copy", "ep", "precision"],
)
def test_an_entry_that_does_not_fit_its_runtime_is_refused(fleet: Fleet, entry: str, words: str) -> None:
    status, engines = fleet(f'[[engines]]\nmodel = "one"\ntarget = "h100"\n{entry}\n', "--dry-run")
    assert (status, outcomes(engines)) == (3, ["refused"])
    assert words in engines[0]["reasons"][0]


def test_an_incomplete_model_is_refused_before_anything_is_built(fleet: Fleet, directory: Path) -> None:
    (directory / "two" / "model-00001-of-00003.safetensors").unlink()
    status, engines = fleet(FLEET)
    assert status == 3
    assert outcomes(engines) == ["built", "built", "refused", "refused", "built", "built"]
    assert "lacks 1 of the 3 files" in engines[2]["reasons"][0]


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ('runtime = "torch"', "runtime is 'torch'"),
        ('copy = "yes"', "copy is 'yes'"),
        ("ep = 0", "ep is 0"),
        ("copy_files = true", "unknown key 'copy_files'"),
    ],
)
def test_an_invalid_key_is_reported(directory: Path, capfd: pytest.CaptureFixture[str], key: str, words: str) -> None:
    (directory / "fleet.toml").write_text(f'[[engines]]\nmodel = "one"\ntarget = "h100"\n{key}\n')
    assert run_program("fleet", directory / "fleet.toml") == 3
    assert words in capfd.readouterr().err


def test_cpu_entries_do_not_take_keys_of_the_runtime(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (directory / "fleet.toml").write_text('[[engines]]\nmodel = "tiny.gguf"\ntarget = "cpu"\nruntime = "pytorch"\n')
    assert run_program("fleet", directory / "fleet.toml") == 3
    assert "target cpu does not support runtime" in capfd.readouterr().err


# --- Several at a time -----------------------------------------------------------------------------------------------


def jobs_of(directory: Path, text: str = FLEET) -> Any:
    (directory / "fleet.toml").write_text(text)
    return make_jobs(read_fleet_file(directory / "fleet.toml"), FakeNvml((H100,)))


class Meeting(SilentProgress):
    """Lets a step end only when two jobs are in one."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=30)

    @contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[Advance]:
        if ": hash " in label:
            self.barrier.wait()
        yield lambda amount: None


def test_different_models_are_hashed_at_the_same_time(directory: Path) -> None:
    text = 'root = "engines"\n[[engines]]\nmodel = ["one", "two"]\ntarget = "h100"\nruntime = "pytorch"\n'
    results = run_fleet(jobs_of(directory, text), Meeting(), parallel=2)
    assert [result.outcome for result in results] == [FleetOutcome.BUILT] * 2


class Steps(RecordingProgress):
    def __init__(self) -> None:
        super().__init__()
        self.labels: list[str] = []

    @contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[Advance]:
        self.labels.append(label)
        yield lambda amount: None


def test_a_model_of_several_engines_is_hashed_once_and_lines_have_the_number_of_the_engine(directory: Path) -> None:
    progress = Steps()
    run_fleet(jobs_of(directory), progress, parallel=4)
    hashed = [label.partition(": ")[2] for label in progress.labels if label.endswith((": hash one", ": hash two"))]
    assert sorted(hashed) == ["hash one", "hash two"]
    assert all(label[0].isdigit() for label in progress.labels[1:])
    assert "1 of 6: one h100 pytorch tp1 len64" in progress.notes


class Interrupted(SilentProgress):
    """Raises KeyboardInterrupt in the calling thread while a job in another thread is hashing."""

    def __init__(self) -> None:
        self.is_hashing, self.is_interrupted = threading.Event(), threading.Event()

    @contextmanager
    def step(self, label: str, total: int | None = None) -> Iterator[Advance]:
        if ": hash one" in label:
            self.is_hashing.set()
            assert self.is_interrupted.wait(30)
        elif ": read tiny" in label:
            assert self.is_hashing.wait(30)
            self.is_interrupted.set()
            raise KeyboardInterrupt
        yield lambda amount: None


def test_an_interrupt_ends_the_jobs_of_other_threads_too(directory: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_fleet(jobs_of(directory), Interrupted(), parallel=1)
    assert [path for path in (directory / "engines").rglob("manifest.json") if "two" in path.parts] == []


@pytest.mark.parametrize("continue_on_error", [False, True], ids=["stops", "goes-on"])
def test_after_a_failure_no_further_engine_is_started_unless_continue_on_error(
    directory: Path, continue_on_error: bool
) -> None:
    entries = "".join(f'[[engines]]\nmodel = "{model}"\ntarget = "h100"\ncopy = true\n' for model in ("one", "two"))
    jobs = jobs_of(directory, f'root = "engines"\n[defaults]\nruntime = "pytorch"\n{entries}')
    with file_size_limit(1000):  # a full disk
        results = run_fleet(jobs, SilentProgress(), continue_on_error, parallel=1)
    second = FleetOutcome.FAILED if continue_on_error else FleetOutcome.NOT_STARTED
    assert [result.outcome for result in results] == [FleetOutcome.FAILED, second]
    assert "File too large" in results[0].reasons[0]
    assert [result.outcome for result in run_fleet(jobs, SilentProgress())] == [FleetOutcome.BUILT] * 2
