"""The verdict on a field: its effect, a refusal by name, and what /v1/models promises."""

from __future__ import annotations

from typing import Any, cast

import httpx
import pytest

from scripts.prove_on_gpu.completions import Completions, RefusedError
from scripts.prove_on_gpu.field_checks import CHECKS, Bench, FieldCheck, run_check
from scripts.prove_on_gpu.outcome import StepFailedError

BENCH = Bench(cast("Completions", None), None, 100)


def check(result: str | Exception | None) -> FieldCheck:
    def run(_bench: Bench) -> str | None:
        if isinstance(result, Exception):
            raise result
        return result

    return FieldCheck("seed", "repeats", run)


@pytest.mark.parametrize(
    ("result", "is_promised", "verdict", "is_problem"),
    [
        (None, True, "honored", False),
        ("two texts", True, "no effect", True),
        ("two texts", False, "no effect", True),
        (RefusedError(400, "seed", "seed is not supported"), False, "refused", False),
        (RefusedError(400, "seed", "seed is not supported"), True, "refused", True),
        (RefusedError(400, None, "something is wrong"), False, "no effect", True),
        ("not checked: no end token", True, "not checked", False),
        (httpx.ReadTimeout("timed out"), True, "error", True),
        (StepFailedError("status 500"), False, "error", True),
    ],
    ids=[
        "honored",
        "ignored",
        "ignored as announced",
        "refused",
        "promised and refused",
        "not named",
        "not checked",
        "timeout",
        "500",
    ],
)
def test_a_field_is_honored_or_refused_by_name(
    result: str | Exception | None, is_promised: bool, verdict: str, is_problem: bool
) -> None:
    finding = run_check(check(result), BENCH, {"seed": is_promised})
    assert (finding.verdict, finding.is_problem) == (verdict, is_problem)


@pytest.mark.parametrize(
    ("most", "promised"), [(None, []), (0, [0]), (20, [0, 2])], ids=["none", "chosen tokens", "alternatives"]
)
def test_logprobs_are_promised_up_to_a_number(most: int | None, promised: list[int]) -> None:
    checks = {(2 if item.capability else 0): item for item in CHECKS if item.field == "logprobs"}
    found = [
        count
        for count, item in checks.items()
        if run_check(
            FieldCheck(item.field, "", lambda _bench: None, item.capability), BENCH, {"logprobs": most}
        ).is_promised
    ]
    assert found == promised


def test_every_extension_of_sampling_is_checked() -> None:
    from llm_pipeline.protocol.fields import SAMPLING_EXTENSIONS

    checked: set[Any] = {item.field for item in CHECKS}
    assert set(SAMPLING_EXTENSIONS) <= checked
