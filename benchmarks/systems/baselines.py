"""Who else is measured: servers named by their URL, and llama.cpp's own, started here."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scenarios import LLAMA_CPP, Client, Contender
from benchmarks.systems.servers import Server, ServerError, llama_cpp_options, llama_cpp_server, named_server

_LLAMA_SLOTS = 64
_LLAMA_TOKENS_PER_SLOT = 2048  # llama.cpp divides its context among its slots, and the longest prompt must fit one


@dataclass(frozen=True)
class Peer:
    """A contender beside ours: how to start it, and what it is, in words."""

    contender: Contender
    start: Callable[[], AbstractContextManager[Server]]
    description: str


def pairs(options: Iterable[str], form: str) -> dict[str, str]:
    """NAME=VALUE options; ValueError for one that is not."""
    found = {}
    for option in options:
        name, sign, value = option.partition("=")
        if not (sign and name.strip() and value.strip()):
            raise ValueError(f"{option!r} is not of the form {form}.")
        found[name.strip()] = value.strip()
    return found


def named_peers(urls: dict[str, str], models: dict[str, str], keys: dict[str, str]) -> list[Peer]:
    """Peers by URL. `keys` are API keys, `models` names of models; both may leave peers out."""
    if unknown := (models.keys() | keys.keys()) - urls.keys():
        raise ValueError(f"No --base-url for {', '.join(sorted(unknown))}.")
    return [_named_peer(name, url, keys.get(name), models.get(name)) for name, url in urls.items()]


def _named_peer(name: str, url: str, key: str | None, model: str | None) -> Peer:
    return Peer(
        Contender(name, name, Client.HTTP),
        lambda: nullcontext(named_server(url, key, model)),
        "an OpenAI-compatible server that was running already",
    )


def llama_cpp_peers(program: Path | None, models: Sequence[Path], log_dir: Path) -> list[Peer]:
    """llama.cpp's server, once for each model file: the first is `llama.cpp`, others have the file's name behind it."""
    if program is None:
        if models:
            raise ValueError("--llama-model needs --llama-server, the program.")
        return []
    if not models:
        raise ValueError("--llama-server needs --llama-model, a GGUF file.")
    for path in (program, *models):
        if not path.is_file():
            raise ValueError(f"No file {path}.")
    version = _version(program)
    return [_llama_cpp_peer(program, version, path, is_first=path is models[0], log_dir=log_dir) for path in models]


def _llama_cpp_peer(program: Path, version: str, model: Path, *, is_first: bool, log_dir: Path) -> Peer:
    name = LLAMA_CPP.name if is_first else f"{LLAMA_CPP.name} {model.stem}"
    options = llama_cpp_options(_LLAMA_SLOTS, _LLAMA_TOKENS_PER_SLOT)
    return Peer(
        Contender(name, name, Client.HTTP),
        lambda: llama_cpp_server(program, model, options, log=log_dir / f"llama-server-{model.stem}.log"),
        f"llama-server {version}, {model.name}, {' '.join(options)}",
    )


def _version(program: Path) -> str:
    """Its first line of --version, which it writes to stderr."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerError(f"{program} can't be run: {error}") from error
    lines = [line for line in (said.stderr + said.stdout).splitlines() if "version" in line]
    return lines[0].strip() if lines else "of unknown version"
