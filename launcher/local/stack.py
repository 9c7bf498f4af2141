"""Starts the engine build, Triton and the front end in order, supervises both servers, and stops them in reverse."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from launcher.local.api_key import KEY_FILE_NAME, choose_api_key, create_keys_file
from launcher.local.engine_build import prepare_engine
from launcher.local.errors import PreflightError, StartError
from launcher.local.frontend_process import create_frontend, frontend_stop_timeout_s
from launcher.local.liveness import LivenessMonitor, StubMonitor
from launcher.local.preflight import check_memory, run_preflight
from launcher.local.processes import ChildProcess
from launcher.local.readiness import wait_until_ready
from launcher.local.server_file import published_server
from launcher.local.stage_monitor import StageMonitor
from launcher.local.triton_wheel import create_triton
from launcher.model_repository import render_model_repository
from launcher.private_files import make_private, make_private_directory
from launcher.settings import MODEL_REPOSITORY, StackSettings
from llm_pipeline.protocol.tensors import ENSEMBLE_MODEL
from llm_pipeline.runtime.deployment import Deployment

# HOST for all addresses -> an address of this machine that clients can use.
_REACHABLE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


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
        host = _REACHABLE.get(self.settings.host, self.settings.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.settings.port}"

    @property
    def key_file(self) -> Path | None:
        """The file of a generated API key; None if the settings define the keys."""
        is_generated = self.settings.api_keys_file is None and not self.settings.api_key
        return self._run_dir / KEY_FILE_NAME if is_generated else None

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
            with published_server(self._run_dir, base_url=self.base_url, api_key=self.api_key, models=self.model_names):
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
        if self._needs_engine:
            self.settings = prepare_engine(self.settings, self._run_dir, self.stop_requested)
            self._check_memory_again()
        engine_dir = self.settings.engine_dir
        with _writing_to(self._run_dir):
            self.api_key = choose_api_key(self.settings, self._run_dir)
            create_keys_file(self.settings)
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
        started_s = time.monotonic()
        with self._console.status("Loading the engine and waiting for a first completion ..."):
            self._wait_until_ready(self.triton, self.frontend)
        seconds = time.monotonic() - started_s
        self._console.print(
            f"[green]✓[/] start Triton, load the engine and complete a prompt [dim]{seconds:.1f} s[/]", highlight=False
        )
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
            return MODEL_REPOSITORY
        folder = self._run_dir / "model_repository" / str(self.settings.port)
        with _writing_to(folder):
            return render_model_repository(self.deployment, MODEL_REPOSITORY, folder)

    @property
    def _needs_engine(self) -> bool:
        """Whether an engine has to be built: the settings name none, and a local model has none of its own."""
        if self.settings.engine_dir is not None:
            return False
        models = self.deployment.models if self.deployment is not None else ()
        return not models or any(model.engine_dir is None for model in models if model.is_local)

    def _check_memory_again(self) -> None:
        """The size of MODEL's weights is known after the build only."""
        if problem := check_memory(self.settings, self.deployment):
            raise PreflightError(problem)


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
