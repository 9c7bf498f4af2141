"""The report: report.json for programs, report.md to read and to attach."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.prove_on_gpu.outcome import Status, StepResult, Table

STAND_IN_NOTE = (
    "**Made with stand-ins for tensorrt_llm. It shows that this program works, and nothing about TensorRT-LLM.**"
)
_MARKS = {Status.PASSED: "passed", Status.FAILED: "**failed**", Status.SKIPPED: "skipped"}


@dataclass(frozen=True)
class Report:
    """A finished run."""

    started: str  # ISO 8601, UTC
    duration_s: float
    git_commit: str | None
    is_stand_in: bool
    command: str
    results: Sequence[StepResult]

    def save(self, output: Path) -> tuple[Path, Path]:
        """Writes both files and returns their paths."""
        output.mkdir(parents=True, exist_ok=True)
        paths = output / "report.md", output / "report.json"
        paths[0].write_text(self.as_markdown(), encoding="utf-8")
        paths[1].write_text(json.dumps(self.as_document(), indent=1) + "\n", encoding="utf-8")
        return paths

    def as_document(self) -> dict[str, Any]:
        """Returns the report as plain data."""
        head = {name: value for name, value in vars(self).items() if name != "results"}
        return {**head, "results": [{**asdict(result), "status": result.status.value} for result in self.results]}

    def as_markdown(self) -> str:
        """Returns the report as a page: a table of all steps, then what each found."""
        lines = ["# Report of scripts/prove-on-gpu", ""]
        if self.is_stand_in:
            lines += [STAND_IN_NOTE, ""]
        lines += [
            f"Started {self.started}, took {self.duration_s:.0f} s, commit {self.git_commit or 'unknown'}.",
            "",
            f"    {self.command}",
            "",
            *_table(Table(("step", "result", "seconds", ""), [_overview(result) for result in self.results])),
        ]
        for result in self.results:
            lines += _section(result)
        return "\n".join(lines) + "\n"


def _overview(result: StepResult) -> tuple[str, ...]:
    return result.name, _MARKS[result.status], f"{result.duration_s:.1f}", result.message.splitlines()[0]


def _section(result: StepResult) -> Iterator[str]:
    if result.status is Status.SKIPPED:
        return
    yield from ("", f"## {result.name}: {_MARKS[result.status]}", "", f"{result.title}.", "")
    if len(result.message.splitlines()) > 1:
        yield from ("```", *result.message.splitlines(), "```")
    else:
        yield result.message
    for table in result.outcome.tables:
        yield ""
        yield from _table(table)


def _table(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(table.header)} |"
    yield "|" + " --- |" * len(table.header)
    for row in table.rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in row)} |"
