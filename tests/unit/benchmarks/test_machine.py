"""Facts about the machine."""

from __future__ import annotations

import sys

import pytest

from benchmarks.machine import gpu_names, load_processes, machine_facts


def test_gpus_are_counted_by_name() -> None:
    printed = "print('NVIDIA H200\\nNVIDIA H200\\nNVIDIA L4')"
    assert gpu_names((sys.executable, "-c", printed)) == "2 x NVIDIA H200, 1 x NVIDIA L4"


@pytest.mark.parametrize("command", [("no-such-program",), (sys.executable, "-c", "raise SystemExit(9)")])
def test_machine_without_nvidia_smi_has_no_gpu(command: tuple[str, ...]) -> None:
    assert gpu_names(command) is None


def test_note_of_the_machine_is_kept() -> None:
    assert machine_facts("a rented host").note == "a rented host"


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 1), (4, 2), (16, 8), (64, 8)])
def test_load_comes_from_more_processes_on_larger_machines(cores: int, expected: int) -> None:
    assert load_processes(cores) == expected
