"""What is accepted as calibration data, before a quantizer has loaded a model in vain."""

from __future__ import annotations

from pathlib import Path

import pytest

from build_engine.errors import EngineRefusedError
from build_engine.gpu.planning.calibration import describe_calibration, require_calibration
from tests.support.plan_requests import plan_for


@pytest.mark.parametrize("source", ["cnn_dailymail", "pileval", "/data/cnn_dailymail", "abisee/cnn_dailymail"])
def test_what_upstream_knows_by_name_is_accepted(source: str) -> None:
    require_calibration(source)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("wikitext", "No calibration data at 'wikitext'"),
        ("/nowhere", "No calibration data at '/nowhere'"),
        ("/data/ScienceQA-mine", "loads calibration data at '/data/ScienceQA-mine' as images"),
    ],
)
def test_what_upstream_would_refuse_is_refused(source: str, words: str) -> None:
    with pytest.raises(EngineRefusedError, match=words):
        require_calibration(source)


@pytest.mark.parametrize(
    "line", ['{"prompt": "x"}', '{"text": 3}', "plain text", "[]", ""], ids=["key", "type", "text", "list", "empty"]
)
def test_lines_without_text_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "train.jsonl").write_text(line + "\n")
    with pytest.raises(EngineRefusedError, match=r"first line of .*train\.jsonl has no 'text'"):
        require_calibration(str(tmp_path))


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineRefusedError, match="is empty"):
        require_calibration(str(tmp_path))


def test_a_directory_of_lines_with_text_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "x"}\n')
    require_calibration(str(tmp_path))


def test_awq_reads_fewer_samples_and_unquantized_weights_none() -> None:
    awq = describe_calibration(plan_for(precision="int4-awq").spec, "cnn_dailymail")
    assert awq
    assert (awq.samples, awq.sha256) == (32, None)
    assert describe_calibration(plan_for(precision="bf16").spec, "cnn_dailymail") is None
