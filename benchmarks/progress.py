"""Progress on a terminal: a bar over all loads, and a line for each finished one."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.report.results import Run
from benchmarks.report.targets import format_number


class BarProgress:
    """A progress bar, as a context manager. It is drawn between loads only, because drawing takes CPU time."""

    def __init__(self, console: Console, total: int) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        is_off = not console.is_terminal
        self._progress = Progress(*columns, console=console, auto_refresh=False, transient=True, disable=is_off)
        self._task = self._progress.add_task("", total=total)
        self._console = console
        self.has_failures = False

    def __enter__(self) -> BarProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show_step(self, text: str) -> None:
        """Shows the current step."""
        self._progress.update(self._task, description=escape(text), refresh=True)

    def run_finished(self, run: Run) -> None:
        """Counts and prints one finished load."""
        self._progress.advance(self._task)
        self._console.print(_line(run), highlight=False, soft_wrap=True)

    def failed(self, text: str) -> None:
        """Prints why a system or group is not measured."""
        self.has_failures = True
        self._console.print(f"[bold red]{escape(text)}[/]", highlight=False, soft_wrap=True)


def _line(run: Run) -> str:
    figures = run.figures
    parts = [
        f"[dim]{run.scenario:13}[/] {escape(run.system):20} {figures.streams:5,} streams",
        f"{figures.tokens_per_s:8,.0f} tok/s",
        f"{figures.events_per_s:7,.0f} events/s",
        f"ttft {_ms(figures.ttft_p50_ms)} ms",
        f"gap {_ms(figures.gap_p50_ms)} / {_ms(figures.gap_p99_ms)} ms",
        f"CPU {run.cpu_per_1000_events(*run.server_roles) or 0:.3f} s/1000 events" if run.server_roles else "",
        "[yellow]the load client was busy[/]" if run.is_client_limited else "",
        f"[yellow]other work {run.noise.other_share:.0%}[/]" if run.noise.other_share > 0.05 else "",
        f"[red]{figures.failures} failed: {escape(str(figures.first_failure))}[/]" if figures.failures else "",
    ]
    return "  ".join(part for part in parts if part)


def _ms(value: float | None) -> str:
    return f"{'-' if value is None else format_number(value):>6}"
