"""Baselines: OpenAI-compatible servers by URL, and llama.cpp's server, which is started here."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scenarios import LLAMA_CPP, Client, System
from benchmarks.systems.servers import Server, ServerError, llama_cpp_options, llama_cpp_server, remote_server

_LLAMA_SLOTS = 64
_LLAMA_TOKENS_PER_SLOT = 2048  # llama.cpp divides its context among its slots; the longest prompt must fit into one


@dataclass(frozen=True)
class Baseline:
    """A system to compare with: how to start it, and a description for the report."""

    system: System
    start: Callable[[], AbstractContextManager[Server]]
    description: str


def pairs(options: Iterable[str], form: str) -> dict[str, str]:
    """Parses NAME=VALUE options. Raises ValueError for an option of another form."""
    values = {}
    for option in options:
        name, sign, value = option.partition("=")
        if not (sign and name.strip() and value.strip()):
            raise ValueError(f"Invalid option {option!r}. Use the form {form}.")
        values[name.strip()] = value.strip()
    return values


def remote_baselines(urls: dict[str, str], models: dict[str, str], keys: dict[str, str]) -> list[Baseline]:
    """Peers by URL. `keys` are API keys, `models` names of models; both may leave baselines out."""
    if unknown := (models.keys() | keys.keys()) - urls.keys():
        raise ValueError(f"No --base-url for {', '.join(sorted(unknown))}.")
    return [_remote_baseline(name, url, keys.get(name), models.get(name)) for name, url in urls.items()]


def _remote_baseline(name: str, url: str, key: str | None, model: str | None) -> Baseline:
    return Baseline(
        System(name, name, Client.HTTP),
        lambda: nullcontext(remote_server(url, key, model)),
        "an OpenAI-compatible server that was already running",
    )


def llama_cpp_baselines(program: Path | None, models: Sequence[Path], log_dir: Path) -> list[Baseline]:
    """Returns llama.cpp's server with each model file: the first as `llama.cpp`, others with the file's name appended.

    Raises ValueError if only one of program and models is given, or a file is missing.
    """
    if program is None:
        if models:
            raise ValueError("--llama-model requires --llama-server, the path of the program.")
        return []
    if not models:
        raise ValueError("--llama-server requires --llama-model, the path of a GGUF file.")
    for path in (program, *models):
        if not path.is_file():
            raise ValueError(f"{path} does not exist.")
    version = _version(program)
    return [_llama_cpp_baseline(program, version, path, is_first=path is models[0], log_dir=log_dir) for path in models]


def _llama_cpp_baseline(program: Path, version: str, model: Path, *, is_first: bool, log_dir: Path) -> Baseline:
    name = LLAMA_CPP.name if is_first else f"{LLAMA_CPP.name} {model.stem}"
    options = llama_cpp_options(_LLAMA_SLOTS, _LLAMA_TOKENS_PER_SLOT)
    return Baseline(
        System(name, name, Client.HTTP),
        lambda: llama_cpp_server(program, model, options, log=log_dir / f"llama-server-{model.stem}.log"),
        f"llama-server {version}, {model.name}, {' '.join(options)}",
    )


def _version(program: Path) -> str:
    """Returns the line of --version, which the program writes to stderr."""
    try:
        result = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerError(f"{program} cannot be run: {error}") from error
    lines = [line for line in (result.stderr + result.stdout).splitlines() if "version" in line]
    return lines[0].strip() if lines else "unknown version"
