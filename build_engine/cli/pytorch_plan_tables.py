"""Prints a plan for the PyTorch runtime: its memory, the refusals, the notes and the command that builds it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from build_engine.artifact.model_directory import CONFIG_NAME
from build_engine.cli.plan_tables import bar
from build_engine.gpu.planning.memory_model import GIB
from build_engine.gpu.planning.options import DEFAULT_TRTLLM
from build_engine.pytorch.planning.parameters import count_parameters
from build_engine.pytorch.planning.plan import PyTorchMemory, PyTorchPlan, PyTorchSpec

NOT_RUN = "Estimates only; nothing has been run on TensorRT-LLM."


def print_plan(console: Console, plan: PyTorchPlan) -> None:
    console.print(_headline(plan.spec), soft_wrap=True, highlight=False)
    if plan.memory:
        console.print(_memory_table(plan.memory))
        console.print(f"[dim]{_assumptions(plan.spec, plan.memory)}[/]", soft_wrap=True, highlight=False)
    for refusal in plan.refusals:
        console.print(f"[bold red]refused:[/] [red]{escape(refusal)}[/]", soft_wrap=True, highlight=False)
    for note in plan.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True, highlight=False)
    if plan.accepted:
        console.print(f"[bold]directory[/] {escape(str(plan.engine_dir))}", soft_wrap=True, highlight=False)
        when = "" if plan.spec.model.weights else "once the weights are there: "
        note = f"[dim]# {when}link the model's files into it and write the manifest[/]"
        console.print(note, soft_wrap=True, highlight=False)
        console.print(shlex.join(build_command(plan.spec)), soft_wrap=True, highlight=False, markup=False)
        console.print(f"[dim]{NOT_RUN}[/]", highlight=False)


def _headline(spec: PyTorchSpec) -> str:
    model, limits = spec.model, spec.limits
    is_counted = model.decoder is not None and model.knows_layers
    size = f", {count_parameters(model.decoder) / 1e9:.2f} B parameters" if model.decoder and is_counted else ""
    experts = f", ep {spec.ep}" if spec.ep > 1 else ""
    return (
        f"[bold]{escape(model.name)}[/] ({escape(model.architecture)}){size}, on {spec.world_size} x "
        f"{escape(spec.gpu.name)} (SM {spec.gpu.sm}): {spec.precision} weights, {spec.kv_precision} KV cache, "
        f"tp {spec.tp}, pp {spec.pp}{experts}, {limits.max_batch_size} requests of {limits.max_seq_len} tokens, "
        f"{limits.max_num_tokens} tokens per step"
    )


def _memory_table(memory: PyTorchMemory) -> Table:
    table = Table("on each GPU", "GiB", "", title="estimated memory", title_justify="left")
    table.columns[1].justify = "right"
    for label, size, style in _parts(memory):
        table.add_row(label, f"{size / GIB:.2f}", bar(size, memory.gpu_bytes, style))
    table.add_section()
    style = "green" if memory.fits else "red"
    table.add_row("total", f"{memory.total_bytes / GIB:.2f}", bar(memory.total_bytes, memory.gpu_bytes, style))
    table.add_row("GPU memory", f"{memory.gpu_bytes / GIB:.2f}", bar(memory.gpu_bytes, memory.gpu_bytes, "dim"))
    table.add_section()
    table.add_row(
        "available for KV cache",
        f"{memory.kv_pool_bytes / GIB:.2f}",
        f"{memory.kv_tokens:,} tokens of {memory.kv_cache_bytes_per_token:,} bytes",
    )
    table.add_row("requests that fit", str(memory.largest_batch_that_fits), "at once, each of the maximum length")
    if memory.largest_batch_with_windows > memory.largest_batch_that_fits:
        table.add_row("", str(memory.largest_batch_with_windows), "with KvCacheConfig.max_attention_window")
    return table


def _parts(memory: PyTorchMemory) -> Iterator[tuple[str, int, str]]:
    """Label, bytes and colour."""
    yield f"weights ({'headers' if memory.are_weights_read else CONFIG_NAME})", memory.weights_bytes, "cyan"
    yield "activations", memory.activation_bytes, "blue"
    yield "CUDA graphs", memory.cuda_graph_bytes, "blue"
    yield "workspace", memory.workspace_bytes, "magenta"
    if memory.state_bytes:
        yield "recurrent states", memory.state_bytes, "yellow"
    yield "KV cache required", memory.kv_cache_bytes, "green" if memory.fits else "red"


def _assumptions(spec: PyTorchSpec, memory: PyTorchMemory) -> str:
    return (
        f"Assumed, not measured: {memory.runtime_bytes / GIB:.2f} GiB for CUDA and PyTorch (--runtime-gib), "
        f"{memory.cuda_graph_bytes / GIB:.2f} GiB for CUDA graphs, and a KV cache of {spec.memory_model.kv_fraction:g} "
        f"of the remaining memory (--kv-cache-fraction). Margin: {memory.margin_bytes / GIB:.2f} GiB stay free."
    )


def build_command(spec: PyTorchSpec) -> list[str]:
    """The `build` command line of a plan, with every value that is not a default."""
    command = ["python", "-m", "build_engine", "build", "--runtime", "pytorch"]
    command += ["--model", str(spec.model.path), "--target", spec.gpu.name, "--name", spec.model.name]
    for option, value in (("--tp", spec.tp), ("--pp", spec.pp), ("--ep", spec.ep)):
        command += [option, str(value)] if value > 1 else []
    limits = spec.limits
    command += ["--max-batch-size", str(limits.max_batch_size), "--max-seq-len", str(limits.max_seq_len)]
    command += ["--max-num-tokens", str(limits.max_num_tokens)]
    if spec.kv_cache_dtype != "auto":
        command += ["--kv-cache-precision", spec.kv_cache_dtype]
    if spec.trtllm_version != DEFAULT_TRTLLM:
        command += ["--tensorrt-llm", spec.trtllm_version]
    return command
