"""Systems to compare with: OpenAI-compatible servers by URL, and llama.cpp's server and NVIDIA's front end.

Baselines run the model of the CPU engine, peers the scripted one.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scenarios import LLAMA_CPP, NVIDIA, STEPS_PER_S, Client, System, scripted_settings
from benchmarks.systems.programs import ServerError
from benchmarks.systems.servers import (
    Server,
    llama_cpp_options,
    llama_cpp_server,
    nvidia_command,
    nvidia_front_end,
    remote_server,
    secret,
)

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


@dataclass(frozen=True)
class RemoteOptions:
    """Servers by URL, in all of these by name; both API keys and names of models may be missing."""

    base_urls: Mapping[str, str]
    peer_urls: Mapping[str, str]
    models: Mapping[str, str]
    keys: Mapping[str, str]

    @classmethod
    def parse(
        cls, base_urls: Iterable[str], peer_urls: Iterable[str], models: Iterable[str], keys: Iterable[str]
    ) -> RemoteOptions:
        """Parses the options' NAME=VALUE pairs.

        Raises ValueError for a malformed pair, a model or key of a server without URL, and a variable that is unset.
        """
        base, peer = pairs(base_urls, "NAME=URL"), pairs(peer_urls, "NAME=URL")
        model_names, variables = pairs(models, "NAME=MODEL"), pairs(keys, "NAME=VARIABLE")
        if unknown := (model_names.keys() | variables.keys()) - (base.keys() | peer.keys()):
            raise ValueError(f"No --base-url or --peer-url for {', '.join(sorted(unknown))}.")
        return cls(base, peer, model_names, {name: secret(variable) for name, variable in variables.items()})

    def baselines(self) -> list[Baseline]:
        """Returns the servers that run the model of the CPU engine."""
        return [self._baseline(name, url, is_scripted=False) for name, url in self.base_urls.items()]

    def peers(self) -> list[Baseline]:
        """Returns the servers that run the scripted model."""
        return [self._baseline(name, url, is_scripted=True) for name, url in self.peer_urls.items()]

    def _baseline(self, name: str, url: str, *, is_scripted: bool) -> Baseline:
        key, model = self.keys.get(name), self.models.get(name)
        kind = f", with a model of {STEPS_PER_S} tokens/s for each stream" if is_scripted else ""
        return Baseline(
            System(name, name, Client.HTTP),
            lambda: nullcontext(remote_server(url, key, model, generates_max_tokens=is_scripted)),
            f"an OpenAI-compatible server that was already running{kind}",
        )


def nvidia_peers(folder: Path | None, python: str, engine_dir: Path, log_dir: Path) -> list[Baseline]:
    """Returns NVIDIA's OpenAI front end on the scripted model. Raises ValueError if `folder` does not contain it."""
    if folder is None:
        return []
    if not (folder / "openai_frontend" / "main.py").is_file():
        raise ValueError(
            f"{folder} has no openai_frontend/main.py. Use the folder python/openai of a checkout of "
            "triton-inference-server/server, or /opt/tritonserver/python/openai in NVIDIA's image."
        )
    settings = scripted_settings()
    command = " ".join(nvidia_command(folder, python, 0))
    return [
        Baseline(
            NVIDIA,
            lambda: nvidia_front_end(folder, python, engine_dir, settings, log=log_dir / "nvidia-front-end.log"),
            " ".join((command, *(f"{name}={value}" for name, value in settings.items()))),
        )
    ]


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
