"""The command line's options: names, types and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Quick = Annotated[bool, typer.Option("--quick", help="Fewer loads and repeats: about two minutes.")]
Large = Annotated[
    bool,
    typer.Option("--large", help="Also up to 2,048 streams, and long streams: about 30 minutes more."),
]
Workers = Annotated[
    list[int] | None, typer.Option(min=1, max=64, help="Front-end workers in --large; repeatable. Default: 1, 4 and 8.")
]
Scenarios = Annotated[list[str] | None, typer.Option("--scenario", help="Run only this scenario; repeatable.")]
Repeats = Annotated[int | None, typer.Option(min=1, help="Repeats of each load, instead of each scenario's own.")]
Against = Annotated[
    Path | None,
    typer.Option(help="A second checkout in which `make install` has been run, measured in turns as `before`."),
]
MachineNote = Annotated[
    str | None, typer.Option(help="Facts about the machine for the results, such as the kind of host.")
]
Output = Annotated[
    Path | None,
    typer.Option(help="Output directory. Default: docs/performance for a full run, else .run/bench/results."),
]
BaseUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--base-url", help="NAME=URL of an OpenAI-compatible baseline, such as vllm=http://127.0.0.1:8000/v1."
    ),
]
PeerUrls = Annotated[
    list[str] | None,
    typer.Option("--peer-url", help="NAME=URL of a running server of the scripted model, measured where it is."),
]
BaselineModels = Annotated[
    list[str] | None,
    typer.Option("--baseline-model", "--peer-model", help="NAME=MODEL, if the server lists several models."),
]
BaselineKeys = Annotated[
    list[str] | None,
    typer.Option("--baseline-key", "--peer-key", help="NAME=VARIABLE: environment variable with its API key."),
]
NvidiaFrontEnd = Annotated[
    Path | None,
    typer.Option(
        "--nvidia-frontend", help="python/openai of triton-inference-server/server: measures NVIDIA's OpenAI front end."
    ),
]
NvidiaPython = Annotated[
    str, typer.Option(help="Python with NVIDIA's tritonserver package and the front end's requirements.")
]
LlamaServer = Annotated[Path | None, typer.Option(help="llama.cpp's server program, which is started.")]
LlamaModels = Annotated[list[Path] | None, typer.Option("--llama-model", help="GGUF file for llama.cpp; repeatable.")]
