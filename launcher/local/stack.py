"""Starts the engine build, Triton and the front end in order, supervises both servers, and stops them in reverse."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from launcher.local.api_key import choose_api_key
from launcher.local.default_engine import build_default_engine
from launcher.local.errors import StartError
from launcher.local.frontend_process import create_frontend, frontend_stop_timeout_s
from launcher.local.liveness import LivenessMonitor, StubMonitor
from launcher.local.preflight import run_preflight
from launcher.local.processes import ChildProcess
from launcher.local.readiness import wait_until_ready
from launcher.local.stage_monitor import StageMonitor
from launcher.local.triton_wheel import create_triton
from launcher.model_repository import render_model_repository
from launcher.private_files import make_private, make_private_directory
from launcher.settings import REPOSITORY_ROOT, StackSettings
from llm_pipeline.protocol.tensors import ENSEMBLE_MODEL
from llm_pipeline.runtime.deployment import Deployment

_MODEL_REPOSITORY = REPOSITORY_ROOT / "model_repository"


class Stack:
    """One stack: `with Stack(settings, console).running() as stack`."""

    def __init__(
        self,
        settings: StackSettings,
        console: Console,
        *,
        create_triton: Callable[..., ChildProcess] = create_triton,
        create_frontend: Callable[..., ChildProcess] = create_frontend,
    ) -> None:
        """`create_triton` and `create_frontend` return the two processes, not yet started."""
        self.settings = settings
        self.stop_requested = threading.Event()  # set from a signal handler; cancels a start that is under way
        self.deployment: Deployment | None = None
        self.api_key: str | None = None
        self.triton: ChildProcess | None = None
        self.frontend: ChildProcess | None = None
        self._console = console
        self._create_triton = create_triton
        self._create_frontend = create_frontend
        self._run_dir = settings.run_dir.absolute()
        self._monitors: list[StubMonitor | LivenessMonitor | StageMonitor] = []

    @property
    def base_url(self) -> str:
        """URL of the front end."""
        return f"http://{self.settings.host}:{self.settings.port}"

    @property
    def log_dir(self) -> Path:
        """Directory of both processes' logs."""
        return self._run_dir / "logs" / str(self.settings.port)

    @property
    def model_names(self) -> list[str]:
        """Every model that the front end serves."""
        if self.deployment is None:
            return [self.settings.model_name]
        return [model.name for model in self.deployment.models]

    @property
    def frontend_stop_timeout_s(self) -> float:
        """Seconds that the front end may take to end after SIGTERM."""
        return frontend_stop_timeout_s(self.settings)

    @contextmanager
    def running(self) -> Iterator[Stack]:
        """Starts everything, yields when every local model has answered, and stops everything on exit.

        Raises PreflightError, StartError, or StartCancelledError if `stop_requested` is set during the start.
        """
        try:
            self._start()
            yield self
        finally:
            self._stop()

    def _start(self) -> None:
        self.deployment = run_preflight(self.settings)
        with _writing_to(self._run_dir):
            self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_private(self._run_dir)
            for folder in (self.log_dir, self.settings.triton_addresses.socket_dir):
                if folder is not None:
                    make_private_directory(folder)
        engine_dir = self.settings.engine_dir or self._build_engine_if_needed()
        with _writing_to(self._run_dir):
            self.api_key = choose_api_key(self.settings, self._run_dir)
            self.triton = self._create_triton(
                self.settings,
                engine_dir=engine_dir,
                repository=self._render_model_repository(),
                run_dir=self._run_dir,
                log_dir=self.log_dir,
            )
        self.frontend = self._create_frontend(
            self.settings,
            api_key=self.api_key,
            engine_dir=engine_dir,
            log_dir=self.log_dir,
        )
        self.triton.start()
        self.frontend.start()
        with self._console.status("Loading the engine and waiting for the first completion ..."):
            self._wait_until_ready(self.triton, self.frontend)
        self._supervise(self.triton, self.frontend)

    def _wait_until_ready(self, *children: ChildProcess) -> None:
        wait_until_ready(
            self.base_url,
            self._local_model_names,
            children,
            timeout_s=self.settings.start_timeout_s,
            cancelled=self.stop_requested,
        )

    def _supervise(self, triton: ChildProcess, frontend: ChildProcess) -> None:
        triton.supervise()
        frontend.supervise()
        addresses, timeout_s = self.settings.triton_addresses, self.settings.triton_hang_timeout_s
        self._monitors = [
            StubMonitor(triton),
            LivenessMonitor(triton, addresses, timeout_s=timeout_s),
            StageMonitor(triton, addresses, self._local_ensembles, timeout_s=timeout_s),
        ]
        for monitor in self._monitors:
            monitor.start()

    def _stop(self) -> None:
        for monitor in self._monitors:
            monitor.close()
        if self.frontend is not None:
            self.frontend.stop()
        if self.triton is not None:
            self.triton.stop()

    @property
    def _local_model_names(self) -> list[str]:
        """The models of this stack's own Triton."""
        if self.deployment is None:
            return [self.settings.model_name]
        return [model.name for model in self.deployment.models if model.is_local]

    @property
    def _local_ensembles(self) -> list[str]:
        """The ensembles of this stack's own Triton."""
        if self.deployment is None:
            return [ENSEMBLE_MODEL]
        return [model.ensemble for model in self.deployment.models if model.has_own_ensemble]

    def _render_model_repository(self) -> Path:
        """Returns the repository's own models, or a rendered folder with an ensemble for each model of a deployment."""
        if self.deployment is None:
            return _MODEL_REPOSITORY
        folder = self._run_dir / "model_repository" / str(self.settings.port)
        with _writing_to(folder):
            return render_model_repository(self.deployment, _MODEL_REPOSITORY, folder)

    def _build_engine_if_needed(self) -> Path | None:
        """Builds the default engine; returns None if every local model has its own."""
        models = self.deployment.models if self.deployment is not None else ()
        if models and all(model.engine_dir is not None for model in models if model.is_local):
            return None
        return build_default_engine(self._run_dir, self.stop_requested)


@contextmanager
def _writing_to(path: Path) -> Iterator[None]:
    """Raises StartError in place of an OSError; a StartError from an inner block passes through."""
    try:
        yield
    except OSError as error:
        raise StartError(
            f"{path} is not writable ({error.strerror or error}). "
            "Set RUN_DIR to a writable directory; in a container, mount a volume or a tmpfs there."
        ) from error
