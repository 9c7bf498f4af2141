"""A fleet file: what it expands to, and messages that name the entry, the key and the value."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from build_engine.errors import EngineRefusedError
from build_engine.fleet.file import FleetEngine, read_fleet_file


def read(directory: Path, text: str) -> list[FleetEngine]:
    path = directory / "fleet.toml"
    path.write_text(text)
    return read_fleet_file(path)


def refusal(directory: Path, text: str) -> str:
    with pytest.raises(EngineRefusedError) as refused:
        read(directory, text)
    return str(refused.value)


def test_lists_are_multiplied_and_single_values_are_not(tmp_path: Path) -> None:
    engines = read(
        tmp_path,
        """
        [[engines]]
        model = "llama"
        target = ["h100", "L40S"]
        precision = ["fp8", "bf16"]
        tp = [1, 2]
        max_seq_len = 4096
        """,
    )
    assert [engine.label for engine in engines] == [
        f"llama {target} {precision} tp{tp} len4096"
        for target in ("h100", "l40s")
        for precision in ("fp8", "bf16")
        for tp in (1, 2)
    ]
    assert {engine.options.max_seq_len for engine in engines} == {4096}


def test_paths_are_relative_to_the_file_and_hub_names_are_left_alone(tmp_path: Path) -> None:
    text = 'root = "out"\n[[engines]]\nmodel = "m"\ntarget = "h100"\ncalibration = '
    local = read(tmp_path, text + '"./texts"')[0]
    assert (local.options.root, local.model, local.options.calibration) == (
        tmp_path / "out",
        tmp_path / "m",
        str(tmp_path / "texts"),
    )
    assert read(tmp_path, text + '"cnn_dailymail"')[0].options.calibration == "cnn_dailymail"
    assert read(tmp_path, text + '"/data/texts"')[0].options.calibration == "/data/texts"


def test_defaults_are_what_an_entry_does_not_say(tmp_path: Path) -> None:
    engines = read(
        tmp_path,
        '[defaults]\ntp = 2\nmax_num_tokens = 4096\n[[engines]]\nmodel = "a"\ntarget = "h100"\n'
        '[[engines]]\nmodel = "b"\ntarget = "h100"\ntp = 4\n[[engines]]\nmodel = "c.gguf"\ntarget = "cpu"\n',
    )
    assert [(engine.options.tp, engine.options.max_num_tokens) for engine in engines] == [
        (2, 4096),
        (4, 4096),
        (2, 4096),
    ]
    assert engines[2].label == "c cpu"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ('target = "h100"', ["engines 1 (no model, h100): model is missing"]),
        ('model = "m"\ntarget = "tpu"', ["engines 1 (m, tpu): target is 'tpu'", "Known targets: cpu, a100"]),
        ('model = "m"\ntarget = "h100"\nprecision = "int3"', ["precision is 'int3'", "'fp8'"]),
        ('model = "m"\ntarget = "h100"\ntp = 0', ["tp is 0", "greater than or equal to 1"]),
        ('model = "m"\ntarget = "h100"\ntp = "2"', ["tp is '2'", "valid integer"]),
        ('model = "m"\ntarget = "h100"\ntp = []', ["tp is []", "at least 1 item"]),
        ('model = "m"\ntarget = "h100"\npercision = "fp8"', ["unknown key 'percision'", "model, target, precision"]),
        ('model = "m.gguf"\ntarget = "cpu"\ntp = 2', ["target cpu does not support tp. Omit it"]),
        ('model = ["a", "b"]\ntarget = "h100"\nname = "x"', ["name 'x' is given to 2 models"]),
    ],
    ids=["missing", "target", "precision", "zero", "text", "empty", "unknown", "cpu", "name"],
)
def test_a_wrong_entry_is_named_with_key_and_value(tmp_path: Path, entry: str, words: list[str]) -> None:
    message = refusal(tmp_path, f"[[engines]]\n{entry}\n")
    assert all(word in message for word in words), message


def test_all_wrong_entries_are_named_and_defaults_are_blamed_for_theirs(tmp_path: Path) -> None:
    message = refusal(
        tmp_path,
        '[defaults]\ntp = -1\n[[engines]]\nmodel = "a"\ntarget = "h100"\n'
        '[[engines]]\nmodel = "b"\ntarget = "x"\ntp = 1\n',
    )
    assert "engines 1 (a, h100): tp (from [defaults]) is -1" in message
    assert "engines 2 (b, x): target is 'x'" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[engines]\n", "is not valid TOML"),
        ("", "there are no engines. Start each one with [[engines]]"),
        ('engines = "all"', "there are no engines"),
        ('[[engine]]\nmodel = "m"', "unknown key 'engine'. The keys are root, defaults and engines"),
        ('root = 3\n[[engines]]\nmodel = "m"\ntarget = "cpu"', "root is 3"),
        ('defaults = 3\n[[engines]]\nmodel = "m"\ntarget = "cpu"', "defaults is not a table"),
    ],
    ids=["syntax", "empty", "no-tables", "misspelt", "root", "defaults"],
)
def test_a_wrong_file_says_how_to_write_it(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineRefusedError, match=r"can't be read.*fleet file"):
        read_fleet_file(tmp_path / "nowhere.toml")


def test_python_3_10_without_tomli_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, library, None)
    assert "pip install tomli" in refusal(tmp_path, "")
