"""Our convert command against a stand-in for tensorrt_llm that takes only keywords which upstream has.

It shows that our side is coherent. Whether upstream does what its sources say, only a GPU can show: not run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from build_engine.gpu.building import convert
from tests.support.plan_requests import plan_for

UPSTREAM = json.loads((Path(__file__).parents[4] / "data" / "tensorrt_llm_build_api.json").read_text())
Calls = list[tuple[str, dict[str, Any]]]


def keywords_of(name: str, given: dict[str, Any]) -> dict[str, Any]:
    known = {*UPSTREAM[name]["keywords"], *UPSTREAM[name].get("extra_keywords", [])}
    assert given.keys() <= known
    return given


class QuantAlgo:
    def __class_getitem__(cls, name: str) -> str:
        assert name in UPSTREAM["QuantAlgo"]
        return name


class Model:
    def __init__(self, rank: int) -> None:
        self._rank = rank

    def save_checkpoint(self, output_dir: str, save_config: bool = True) -> None:
        (Path(output_dir) / f"rank{self._rank}.safetensors").touch()
        if save_config:
            (Path(output_dir) / "config.json").touch()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    made: Calls = []

    class AutoModelForCausalLM:
        @staticmethod
        def from_hugging_face(hf_model_or_dir: str, **keywords: Any) -> Model:
            made.append(("from_hugging_face", keywords_of("from_hugging_face", keywords)))
            return Model(keywords["mapping"]["rank"])

    def quantize_and_export(**keywords: Any) -> None:
        made.append(("quantize_and_export", keywords_of("quantize_and_export", keywords)))

    def module(name: str, **members: Any) -> None:
        made_module = ModuleType(name)
        vars(made_module).update(members)
        monkeypatch.setitem(sys.modules, name, made_module)

    module(
        "tensorrt_llm",
        AutoModelForCausalLM=AutoModelForCausalLM,
        Mapping=lambda **keywords: keywords_of("Mapping", keywords),
    )
    module("tensorrt_llm.llmapi", QuantConfig=lambda **keywords: keywords)
    module("tensorrt_llm.quantization", QuantAlgo=QuantAlgo, quantize_and_export=quantize_and_export)
    return made


def run_first_step(tmp_path: Path, **options: Any) -> int:
    argv = list(plan_for(**options).steps[0].argv[3:])
    argv[argv.index("--output") + 1] = str(tmp_path / "checkpoint")
    return convert.main(argv)


def test_every_rank_is_converted_and_the_configuration_written_once(calls: Calls, tmp_path: Path) -> None:
    assert run_first_step(tmp_path, precision="int8-wo", tp=2, pp=2) == 0
    mappings = [keywords["mapping"] for _, keywords in calls]
    assert [mapping["rank"] for mapping in mappings] == [0, 1, 2, 3]
    assert {(m["world_size"], m["tp_size"], m["pp_size"]) for m in mappings} == {(4, 2, 2)}
    assert calls[0][1]["quant_config"] == {"quant_algo": "W8A16"}
    assert calls[0][1]["dtype"] == "bfloat16"
    names = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert names == ["config.json", *(f"rank{rank}.safetensors" for rank in range(4))]


@pytest.mark.parametrize(
    ("options", "qformat", "kv"),
    [
        ({"precision": "fp8"}, "fp8", "fp8"),
        ({"precision": "nvfp4", "target": "b200"}, "nvfp4", "fp8"),
        ({"precision": "int4-awq"}, "int4_awq", None),
        ({"precision": "w4a8-awq"}, "w4a8_awq", "fp8"),
        ({"precision": "int8-sq", "kv": "int8"}, "int8_sq", "int8"),
        ({"precision": "bf16", "kv": "fp8"}, "full_prec", "fp8"),
    ],
    ids=["fp8", "nvfp4", "awq", "w4a8", "sq", "kv-only"],
)
def test_the_quantizer_gets_upstreams_names(
    calls: Calls, tmp_path: Path, options: dict[str, Any], qformat: str, kv: str | None
) -> None:
    assert run_first_step(tmp_path, calibration="my-texts", tp=2, **options) == 0
    ((name, keywords),) = calls
    assert name == "quantize_and_export"
    assert (keywords["qformat"], keywords["kv_cache_dtype"]) == (qformat, kv)
    assert (keywords["calib_dataset"], keywords["tp_size"], keywords["pp_size"]) == ("my-texts", 2, 1)
    assert qformat in UPSTREAM["quantize_and_export"]["qformats"]
    assert kv in UPSTREAM["quantize_and_export"]["kv_cache_dtypes"]


def test_without_tensorrt_llm_the_step_says_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    assert run_first_step(tmp_path, precision="bf16") == 3
    assert "Run this step on a machine with TensorRT-LLM" in capsys.readouterr().err


def test_calibration_is_asked_for_when_the_plan_was_not_followed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--model",
        "m",
        "--output",
        "c",
        "--precision",
        "fp8",
        "--kv-cache-precision",
        "fp8",
        "--dtype",
        "bfloat16",
    ]
    assert convert.main(arguments) == 3
    assert "requires --calibration" in capsys.readouterr().err
