"""Prints a plan: its memory, the reasons why it is refused, its notes and its commands."""

from __future__ import annotations

import shlex

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from build_engine.gpu.planning.memory import MemoryEstimate
from build_engine.gpu.planning.memory_model import GIB
from build_engine.gpu.planning.parameters import count_parameters
from build_engine.gpu.planning.planner import Plan
from build_engine.planning.runtimes import RuntimeChoice

_BAR_WIDTH = 40
NOT_RUN = "Estimates and commands only; nothing has been run on TensorRT-LLM."


def print_runtime(console: Console, choice: RuntimeChoice) -> None:
    """The runtime, and why it was chosen."""
    console.print(f"[bold]runtime {choice.runtime.value}:[/] {escape(choice.reason)}", soft_wrap=True, highlight=False)


def print_plan(console: Console, plan: Plan) -> None:
    spec = plan.spec
    console.print(
        f"[bold]{escape(spec.model.name)}[/], {count_parameters(spec.model) / 1e9:.2f} B parameters, on "
        f"{spec.world_size} x {escape(spec.gpu.name)} (SM {spec.gpu.sm}): {spec.precision.name} weights, "
        f"{spec.kv.name} KV cache, tp {spec.tp}, pp {spec.pp}, {spec.limits.max_batch_size} requests of "
        f"{spec.limits.max_seq_len} tokens, {spec.limits.max_num_tokens} tokens per step",
        soft_wrap=True,
        highlight=False,
    )
    console.print(_memory_table(plan.memory))
    console.print(f"[dim]{_assumptions(plan)}[/]", soft_wrap=True, highlight=False)
    for refusal in plan.refusals:
        console.print(f"[bold red]refused:[/] [red]{escape(refusal)}[/]", soft_wrap=True, highlight=False)
    for note in plan.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True, highlight=False)
    if plan.accepted:
        _print_commands(console, plan)


def _assumptions(plan: Plan) -> str:
    memory, fraction = plan.memory, plan.spec.memory_model.kv_fraction
    return (
        f"Assumed, not measured: {memory.runtime_bytes / GIB:.2f} GiB for CUDA and TensorRT (--runtime-gib), "
        f"{memory.decoder_bytes / GIB:.2f} GiB for the decoder, and a KV cache of {fraction:g} of the remaining memory "
        f"(--kv-cache-fraction). Margin: {memory.margin_bytes / GIB:.2f} GiB stay free."
    )


def _print_commands(console: Console, plan: Plan) -> None:
    """Prints each command on one line without wrapping or markup, so that it can be copied."""
    console.print(f"[bold]engine[/] {escape(str(plan.engine_dir))}", soft_wrap=True, highlight=False)
    for number, step in enumerate(plan.steps, start=1):
        console.print(f"[dim]# {number}. {step.name}[/]", highlight=False)
        console.print(shlex.join(step.argv), soft_wrap=True, highlight=False, markup=False)
    console.print(f"[dim]{NOT_RUN}[/]", highlight=False)


def _memory_table(memory: MemoryEstimate) -> Table:
    table = Table("on each GPU", "GiB", "", title="estimated memory", title_justify="left")
    table.columns[1].justify = "right"
    for label, size, style in (
        ("weights", memory.weights_bytes, "cyan"),
        ("activations", memory.activation_bytes, "blue"),
        ("workspace", memory.workspace_bytes, "magenta"),
        ("KV cache required", memory.kv_cache_bytes, "green" if memory.fits else "red"),
    ):
        table.add_row(label, f"{size / GIB:.2f}", bar(size, memory.gpu_bytes, style))
    table.add_section()
    total_style = "green" if memory.fits else "red"
    table.add_row("total", f"{memory.total_bytes / GIB:.2f}", bar(memory.total_bytes, memory.gpu_bytes, total_style))
    table.add_row("GPU memory", f"{memory.gpu_bytes / GIB:.2f}", bar(memory.gpu_bytes, memory.gpu_bytes, "dim"))
    table.add_row(
        "available for KV cache",
        f"{memory.kv_pool_bytes / GIB:.2f}",
        f"{memory.kv_cache_bytes_per_token} bytes per token, largest batch that fits: {memory.largest_batch_that_fits}",
    )
    return table


def bar(size: int, whole: int, style: str) -> Text:
    """A bar in proportion to `whole`; an arrow marks a size above it."""
    cells = min(_BAR_WIDTH, -(-size * _BAR_WIDTH // whole))
    return Text("█" * cells + ("▶" if size > whole else ""), style=style)
