"""Engine -> Triton -> front end -> a first answer; then wait for a signal, and everything down again."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
from rich.console import Console

from launcher.local import triton_wheel as triton_server
from launcher.local.liveness import LivenessMonitor
from launcher.local.preflight import PreflightError, run_preflight
from launcher.local.processes import ChildProcess
from launcher.local.stub_watch import StubMonitor
from launcher.model_repository import render_model_repository
from launcher.settings import REPOSITORY_ROOT, StackSettings
from llm_pipeline.runtime.deployment import Deployment

_log = logging.getLogger(__name__)
_ENGINE = "smollm2-135m-instruct/cpu-fp16"
_POLL_S = 0.1
# An engine that can't be loaded raises one of these in decode; Triton quotes it among many lines of its own.
_ENGINE_REASON = re.compile(r"(?:ManifestError|EngineStartError): ([^\"\\]+)")
TRITON_STOP_LIMIT_S = 20.0
_AFTER_DRAIN_S = 15.0  # more than the front end's supervisor gives its workers


class StartError(Exception):
    """The stack did not come up; the message says which part and what its log says."""


class StoppedError(Exception):
    """Somebody asked for the end before the stack was up."""


class Stack:
    """One running stack. Use it as `with Stack(settings, console).running() as stack`."""

    def __init__(
        self, settings: StackSettings, console: Console, *, asked_to_stop: threading.Event | None = None
    ) -> None:
        self._asked_to_stop = asked_to_stop or threading.Event()  # set from a signal handler: a start gives up
        self._settings = settings
        self._console = console
        self._run_dir = settings.run_dir.absolute()  # the build runs in another directory
        self._log_dir = self._run_dir / "logs" / str(settings.port)
        self.deployment: Deployment | None = None
        self.api_key: str | None = None
        self.triton: ChildProcess | None = None
        self.frontend: ChildProcess | None = None
        self._watches: list[StubMonitor | LivenessMonitor] = []

    @property
    def base_url(self) -> str:
        return f"http://{self._settings.host}:{self._settings.port}"

    @property
    def frontend_stop_limit_s(self) -> float:
        """Seconds that the front end has to end after SIGTERM."""
        return self._settings.drain_timeout_s + _AFTER_DRAIN_S

    @contextmanager
    def running(self) -> Iterator[Stack]:
        """Start everything, hand over when the model has answered, stop everything.

        PreflightError, StartError, StoppedError.
        """
        try:
            self._start()
            yield self
        finally:
            self._stop()

    def _start(self) -> None:
        self.deployment = run_preflight(self._settings)
        with _written_to(self._run_dir):
            self._run_dir.mkdir(parents=True, exist_ok=True)
            self._log_dir.mkdir(parents=True, exist_ok=True)
        engine_dir = self._settings.engine_dir or self._build_engine_if_needed()
        with _written_to(self._run_dir):
            self.api_key = self._find_key()
            backends = triton_server.prepare_backends(self._run_dir)
        prefix = triton_server.new_shared_memory_prefix(self._settings)
        self.triton = ChildProcess(
            "Triton",
            triton_server.command(self._settings, backends, self._model_repository(), shared_memory_prefix=prefix),
            triton_server.environment(self._settings, engine_dir),
            self._log_dir / "triton.log",
            stop_limit_s=TRITON_STOP_LIMIT_S,
            tidy_up=partial(triton_server.remove_shared_memory, prefix),
        )
        self.frontend = ChildProcess(
            "The front end",
            [sys.executable, "-m", "frontend"],
            self._frontend_environment(engine_dir),
            self._log_dir / "frontend.log",
            stop_limit_s=self.frontend_stop_limit_s,
        )
        self.triton.start()
        self.frontend.start()
        with self._console.status("Loading the engine, waiting for a first answer ..."):
            self._await_ready(self.triton, self.frontend)
        self.triton.supervise()
        self.frontend.supervise()
        self._watches = [
            StubMonitor(self.triton),
            LivenessMonitor(self.triton, self._settings.triton_http_port, limit_s=self._settings.triton_hang_timeout_s),
        ]

    def _stop(self) -> None:
        for watch in self._watches:
            watch.close()
        if self.frontend is not None:
            self.frontend.stop()
        if self.triton is not None:
            self.triton.stop()

    @property
    def _model_names(self) -> list[str]:
        """The models of this stack's own Triton."""
        if self.deployment is None:
            return [self._settings.model_name]
        return [model.name for model in self.deployment.models if model.is_local]

    def _model_repository(self) -> Path:
        """Triton's: the one in the repository, or one with an ensemble for each model of the deployment."""
        source = REPOSITORY_ROOT / "model_repository"
        if self.deployment is None:
            return source
        folder = self._run_dir / "model_repository" / str(self._settings.port)
        with _written_to(folder):
            return render_model_repository(self.deployment, source, folder)

    def _build_engine_if_needed(self) -> Path | None:
        """The default engine, unless every model has one of its own."""
        models = self.deployment.models if self.deployment is not None else ()
        if models and all(model.engine_dir is not None for model in models if model.is_local):
            return None
        return self._build_engine()

    def _build_engine(self) -> Path:
        """The default engine; build_engine leaves an existing good one alone."""
        engine_dir = self._run_dir / "engines" / _ENGINE
        arguments = [sys.executable, "-m", "build_engine", "build", "--target", "cpu", "--output", str(engine_dir)]
        with subprocess.Popen(arguments, cwd=REPOSITORY_ROOT, stdin=subprocess.DEVNULL) as build:
            while build.poll() is None:
                if self._asked_to_stop.wait(_POLL_S):
                    build.terminate()
                    raise StoppedError
        if build.returncode != 0:
            raise StartError("The engine could not be built; the lines above say why.")
        return engine_dir

    def _find_key(self) -> str | None:
        """The key to print: the one that was set, or one that is made and kept; None when a key file is in charge."""
        if self._settings.api_keys_file is not None:
            return None
        if self._settings.api_key:
            return self._settings.api_key
        path = self._run_dir / "api-key"
        if path.exists() and (key := path.read_text().strip()):
            return key
        key = f"sk-{secrets.token_urlsafe(24)}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(key + "\n")
        path.chmod(0o600)
        return key

    def _frontend_environment(self, engine_dir: Path | None = None) -> dict[str, str]:
        environment = {
            **os.environ,
            "HOST": self._settings.host,
            "PORT": str(self._settings.port),
            "FRONTEND_WORKERS": str(self._settings.frontend_workers),
            "DRAIN_TIMEOUT_S": str(self._settings.drain_timeout_s),
            "TRITON_GRPC_PORT": str(self._settings.triton_grpc_port),
            "MODEL_NAME": self._settings.model_name,
            "EXECUTOR": self._settings.executor,
        }
        if engine_dir is not None:
            environment["ENGINE_DIR"] = str(engine_dir)
        if self._settings.deployment is not None:
            environment["DEPLOYMENT"] = str(self._settings.deployment.absolute())
        if self.api_key is not None:
            environment["API_KEY"] = self.api_key
        if self._settings.api_keys_file is not None:
            environment["API_KEYS_FILE"] = str(self._settings.api_keys_file)
        return environment

    def _await_ready(self, *children: ChildProcess) -> None:
        deadline = time.monotonic() + self._settings.start_timeout_s
        url, waiting = f"{self.base_url}/health/ready", list(self._model_names)
        with httpx.Client(timeout=5, trust_env=False) as client:
            while time.monotonic() < deadline:
                for child in children:
                    if not child.is_alive:
                        raise StartError(f"{child.name} ended while it started. {_log_tail(child)}")
                try:
                    while client.get(url, params={"model": waiting[0]}).status_code == httpx.codes.OK:
                        if not waiting[1:]:
                            return
                        waiting.pop(0)
                except httpx.TransportError:
                    pass  # not listening yet
                if self._asked_to_stop.wait(_POLL_S):
                    raise StoppedError
        tails = "\n".join(_log_tail(child) for child in children)
        raise StartError(
            f"No answer of {waiting[0]} within {self._settings.start_timeout_s:.0f} s (START_TIMEOUT_S).\n{tails}"
        )


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    """StartError in place of an OSError."""
    try:
        yield
    except OSError as error:
        raise StartError(
            f"{folder} can't be written ({error.strerror or error}). Let RUN_DIR be a folder that can, or mount a "
            "tmpfs or a volume there."
        ) from error


def _log_tail(child: ChildProcess) -> str:
    """Why it ended, when an engine says so; and the end of its log, which may be about something else by then."""
    reason = _ENGINE_REASON.search(child.last_lines(200))
    said = f"{reason[1]}\n" if reason else ""
    return f"{said}The end of {child.log_path}:\n{child.last_lines()}"


def serve(settings: StackSettings, console: Console) -> int:
    """Run the stack until SIGINT or SIGTERM. Exit status 0, or 1 when something is missing or does not start."""
    asked_to_stop = threading.Event()
    stack = Stack(settings, console, asked_to_stop=asked_to_stop)

    # The handler only takes note: an exception raised from here could end inside somebody's lock, and be lost.
    def stop(_signal: int, _frame: object) -> None:
        if asked_to_stop.is_set():  # the second Ctrl-C: no more patience
            for child in (stack.frontend, stack.triton):
                if child is not None:
                    child.kill()
        asked_to_stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        with stack.running():
            _print_banner(stack, settings, console)
            asked_to_stop.wait()
            console.print("Stopping: what is in flight finishes first. Ctrl-C again ends it now.")
    except (PreflightError, StartError) as error:
        console.print(f"[bold red]Not started.[/] {error}", highlight=False, soft_wrap=True)
        return 1
    except StoppedError:
        console.print("Stopped.")
    return 0


def _shown(path: Path) -> Path:
    """The path as a person in this folder would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _print_banner(stack: Stack, settings: StackSettings, console: Console) -> None:
    key = stack.api_key or "YOUR_KEY"
    models = [model.name for model in stack.deployment.models] if stack.deployment else [settings.model_name]
    body = f'{{"model": "{models[0]}", "prompt": "Once upon a time", "max_tokens": 32, "stream": true}}'
    console.print(f"\n[bold green]Ready.[/] {', '.join(models)} on {stack.base_url}", highlight=False, soft_wrap=True)
    console.print(f"  API       {stack.base_url}/openai/v1/completions", highlight=False, soft_wrap=True)
    console.print(f"  key       {key}", highlight=False, soft_wrap=True)
    console.print(f"  page      {stack.base_url}/", highlight=False, soft_wrap=True)
    console.print(f"  docs      {stack.base_url}/docs", highlight=False, soft_wrap=True)
    console.print(
        f"  logs      {_shown(settings.run_dir / 'logs' / str(settings.port))}", highlight=False, soft_wrap=True
    )
    console.print("\nTry it:\n", highlight=False)
    console.print(
        f"curl -N {stack.base_url}/openai/v1/completions \\\n"
        f"  -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\\n"
        f"  -d '{body}'",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    console.print("\nCtrl-C stops everything.", highlight=False)
