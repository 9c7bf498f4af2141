"""The program as people run it: steps that need no TensorRT-LLM, exit statuses, and the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.installed import FAKES, write_script
from tests.support.hugging_face_models import REFERENCE_MODELS
from tests.support.proof import run_proof


@pytest.fixture(autouse=True)
def _without_tensorrt_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROVE_STAND_INS", raising=False)


def test_steps_without_tensorrt_llm_pass_on_a_gpu_alone(tmp_path: Path) -> None:
    proof = run_proof(tmp_path, "--only", "versions,target,plan")
    assert (proof.status, set(proof.statuses.values())) == (0, {"passed"}), proof.output
    target = proof.results["target"]["outcome"]["data"]["target"]
    assert (target["name"], target["sm"], target["count"]) == ("h100", 90, 1)
    plans = proof.results["plan"]["outcome"]["data"]["plans"]
    planned = {(plan["model_dir"], plan["runtime"]) for plan in plans}
    assert planned >= {
        (name, runtime) for name in ("llama-3.1-8b", "smollm2-135m") for runtime in ("engine", "pytorch")
    }
    assert {plan["runtime"] for plan in plans if plan["accepted"]} == {"engine", "pytorch"}
    assert "stand-in" not in proof.page


def test_a_machine_without_tensorrt_llm_skips_the_other_steps_with_a_reason(tmp_path: Path) -> None:
    proof = run_proof(tmp_path, "--skip", "plan")
    assert proof.status == 4, proof.output
    skipped = {name: result["message"] for name, result in proof.results.items() if result["status"] == "skipped"}
    assert proof.statuses.keys() - skipped.keys() == {"versions", "target"}
    assert all("TensorRT-LLM is not installed" in reason for reason in skipped.values())


def test_a_model_is_built_for_the_installed_release_and_verified(tmp_path: Path) -> None:
    script = write_script(tmp_path / "script.json", version="1.3.0rc26")
    model = REFERENCE_MODELS["llama"].write(tmp_path / "model")
    steps = ("--only", "pytorch/build,pytorch/verify,engine/build", "--model", str(model))
    proof = run_proof(tmp_path / "output", *steps, PROVE_STAND_INS=str(FAKES), FAKE_TENSORRT_LLM=str(script))
    assert proof.statuses == {"engine/build": "skipped", "pytorch/build": "passed", "pytorch/verify": "passed"}
    assert proof.results["pytorch/build"]["outcome"]["data"]["manifest"]["pytorch"]["tensorrt_llm"] == "1.3.0rc26"
    assert "1.3.0rc26 has no engine runtime" in proof.results["engine/build"]["message"]


def test_a_failed_step_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    proof = run_proof(tmp_path, "--only", "target,versions,signatures", PYTHONPATH="")
    assert proof.statuses == {"versions": "passed", "target": "failed", "signatures": "skipped"}
    assert proof.status == 1
    assert "## target: **failed**" in proof.page
    assert "nvidia-ml-py" in proof.results["target"]["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "everything"], "No such step: everything. Steps: versions, target"),
        (["--engine", "engine=/nowhere"], "where DIR has a manifest.json"),
        (["--engine", "cpu=/nowhere"], "write engine=DIR or pytorch=DIR"),
        (["--concurrency", "many"], "many"),
        (["--only", "plan", "--skip", "plan"], "leave no step"),
    ],
    ids=["unknown step", "no engine", "unknown runtime", "no number", "nothing left"],
)
def test_wrong_usage_starts_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    proof = run_proof(tmp_path, *arguments)
    assert (proof.status, proof.results) == (2, {})
    assert message in " ".join(proof.output.split())


def test_the_list_of_steps_marks_those_that_need_no_tensorrt_llm(tmp_path: Path) -> None:
    output = run_proof(tmp_path, "--list", COLUMNS="200").output
    rows = {line.split("│")[1].strip(): line for line in output.splitlines() if line.startswith("│")}
    assert {name for name, line in rows.items() if "yes" in line} == {"versions", "target", "plan"}
