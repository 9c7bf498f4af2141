"""scripts/prove-on-gpu with the stand-in for tensorrt_llm behind the real Triton: every step runs, and the report says
that it was made with stand-ins.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm_pipeline.engine_files.manifest import TOKENIZER_NAME
from tests.fakes.gpu_engine import make_gpu_engine
from tests.fakes.installed import FAKES, write_script
from tests.fakes.model_directory import make_model_directory
from tests.support.proof import Proof, proof_command, proof_environment, run_proof
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

VOCAB_SIZE, CONTEXT = 49152, 8192
RUNTIMES = ("engine", "pytorch")


@pytest.fixture(scope="module")
def stand_ins(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables of the stand-ins, and two more: the directories that they serve, by runtime."""
    folder = tmp_path_factory.mktemp("proof")
    sizes: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "max_seq_len": CONTEXT, "max_batch_size": 256}
    make_gpu_engine(folder / "engine", tokenizer=engine_dir / TOKENIZER_NAME, **sizes)
    make_model_directory(folder / "pytorch", tokenizer=engine_dir / TOKENIZER_NAME, **sizes)
    script = write_script(folder / "script.json", steps_per_s=200, has_empty_final=True)
    return {
        "PROVE_STAND_INS": str(FAKES),
        "FAKE_TENSORRT_LLM": str(script),
        "ENGINE": f"engine={folder / 'engine'}",
        "PYTORCH": f"pytorch={folder / 'pytorch'}",
    }


@pytest.fixture(scope="module")
def proof(stand_ins: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Proof:
    return run_proof(
        tmp_path_factory.mktemp("proof"),
        *("--engine", stand_ins["ENGINE"], "--engine", stand_ins["PYTORCH"]),
        *("--skip", "pytorch/verify"),  # the weights are a few bytes
        *("--cancels", "5", "--concurrency", "1,4", "--max-tokens", "16"),
        **stand_ins,
    )


def test_every_step_runs_except_those_that_stand_ins_can_not_pass(proof: Proof) -> None:
    # The stand-in lacks what builds engines, and follows no guide. Directories that are given are not built.
    served = {
        "build": "skipped",
        "serve": "passed",
        "fields": "passed",
        "guides": "failed",
        "isolation": "passed",
        "cancel": "passed",
        "load": "passed",
        "death": "passed",
    }
    assert proof.statuses == {
        "versions": "passed",
        "target": "passed",
        "plan": "passed",
        "signatures": "failed",
        "engine/verify": "passed",
        **{f"{runtime}/{name}": status for runtime in RUNTIMES for name, status in served.items()},
    }, proof.output
    assert proof.status == 1


def test_the_report_says_that_it_was_made_with_stand_ins(proof: Proof) -> None:
    assert proof.document["is_stand_in"] is True
    assert "**Made with stand-ins for tensorrt_llm." in proof.page


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_fields_are_judged_one_by_one(proof: Proof, runtime: str) -> None:
    findings = proof.results[f"{runtime}/fields"]["outcome"]["data"]["findings"]
    verdicts = {(finding["field"], finding["verdict"]) for finding in findings}
    assert {("seed", "honored"), ("logit_bias", "honored"), ("repetition_penalty", "honored")} <= verdicts
    assert ("echo", "refused") in verdicts


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_bad_guides_are_refused_beside_good_requests(proof: Proof, runtime: str) -> None:
    data = proof.results[f"{runtime}/isolation"]["outcome"]["data"]
    assert data["complete"] == 10
    # Only a compiler that knows Lark's syntax may take such a grammar.
    assert {name for name, status in data["statuses"].items() if status != 400} <= {"a Lark grammar"}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_death_ends_streams_with_an_error_and_the_launcher_with_its_status(proof: Proof, runtime: str) -> None:
    data = proof.results[f"{runtime}/death"]["outcome"]["data"]
    assert data["launcher_status"] == 70
    assert [ending.split(":")[0] for ending in data["endings"]] == ["error event"] * 4
    assert data["leftover"] == []
    assert 0 < data["restart_s"] < 60


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_load_is_measured_at_each_concurrency(proof: Proof, runtime: str) -> None:
    points = proof.results[f"{runtime}/load"]["outcome"]["data"]["points"]
    assert [point["streams"] for point in points] == [1, 4]
    assert all(point["tokens_per_s"] > 0 and point["ttft_p50_s"] > 0 for point in points)


def test_a_run_that_is_killed_leaves_its_report_and_no_server(stand_ins: dict[str, str], tmp_path: Path) -> None:
    steps = ("--only", "versions,engine/serve,engine/cancel", "--cancels", "100000")
    command = proof_command(tmp_path, "--engine", stand_ins["ENGINE"], *steps)
    with subprocess.Popen(
        command, env=proof_environment(**stand_ins, TRITON_EXIT_TIMEOUT_S="3"), stdout=subprocess.DEVNULL
    ) as process:
        report = tmp_path / "report.json"
        served = '"name": "engine/serve"'
        wait_until(lambda: report.exists() and served in report.read_text(), limit_s=60, what="it serves")
        below = psutil.Process(process.pid).children(recursive=True)
        words = {word for child in below for word in child.cmdline()}
        process.kill()
    assert {"frontend", "launcher.gpu"} <= words
    _, alive = psutil.wait_procs(below, timeout=90)
    assert alive == []
    statuses = {result["name"]: result["status"] for result in json.loads(report.read_bytes())["results"]}
    assert statuses == {"versions": "passed", "engine/serve": "passed"}
