"""Every request field: honored, refused by name, or without effect; compared with what /v1/models promises."""

from __future__ import annotations

from dataclasses import asdict

from scripts.prove_on_gpu.completions import Completions
from scripts.prove_on_gpu.context import Context
from scripts.prove_on_gpu.field_checks import CHECKS, Bench, Finding, run_check
from scripts.prove_on_gpu.outcome import Outcome, StepFailedError, Table


def run(context: Context) -> Outcome:
    """Fails if a field has no effect, or if it is promised and refused."""
    server = context.server
    assert server is not None
    findings: list[Finding] = []
    with Completions(server) as completions:
        capabilities = completions.capabilities()
        bench = Bench(completions, next(iter(server.manifest.tokens.eos), None), server.longest_completion)
        for check in CHECKS:
            context.left_s()
            findings.append(run_check(check, bench, capabilities))
    rows: list[tuple[str, ...]] = [
        (
            finding.field,
            finding.effect,
            "yes" if finding.is_promised else "no",
            f"**{finding.verdict}**" if finding.is_problem else finding.verdict,
            finding.detail,
        )
        for finding in findings
    ]
    honored = sum(finding.verdict == "honored" for finding in findings)
    refused = sum(finding.verdict == "refused" for finding in findings)
    outcome = Outcome(
        f"{honored} honored, {refused} refused by name",
        (Table(("field", "effect", "promised", "result", "detail"), rows),),
        {"capabilities": capabilities, "findings": [asdict(finding) for finding in findings]},
    )
    if problems := [finding for finding in findings if finding.is_problem]:
        words = ", ".join(f"{finding.field} ({finding.verdict})" for finding in problems)
        raise StepFailedError(f"Not as promised: {words}.", outcome)
    return outcome
