"""The command line's options: names, types and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm_pipeline.protocol.executor_names import ExecutorName

FULL_MINUTES = 10.0
QUICK_MINUTES = 2.0

Quick = Annotated[bool, typer.Option("--quick", help="About two minutes instead of ten.")]
Minutes = Annotated[float | None, typer.Option(min=0.1, help="Duration of all phases but the random guides.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="Only kinds whose name contains this text; repeatable.")]
Guides = Annotated[
    int, typer.Option(min=0, help="Random guides of each sort to send afterwards, each of which must get a 200 or 400.")
]
Seed = Annotated[int, typer.Option(help="Seed of the hostile clients and the random guides.")]
MemoryLimit = Annotated[
    float, typer.Option(min=1000, help="MiB of the whole stack beyond which its largest process is ended.")
]
Output = Annotated[
    Path | None,
    typer.Option(help="Output directory. Default: docs/reliability for a full run, else .run/siege."),
]
Before = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="siege.json of an earlier run, as columns. Default: docs/reliability/siege-before.json.",
    ),
]
Executor = Annotated[
    ExecutorName,
    typer.Option(
        help="cpu, or scripted: tokens at a fixed pace, as from a GPU that other requests do not slow down; no guides."
    ),
]
Redraw = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="Only write page and plot again, from this siege.json, into its directory."
    ),
]
Listed = Annotated[bool, typer.Option("--list", help="List the kinds of hostile clients, and end.")]
