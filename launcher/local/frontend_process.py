"""The front-end process of a local stack: its environment, and how long it may take to stop."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.local.processes import ChildProcess, python_program
from launcher.settings import StackSettings

_AFTER_DRAIN_S = 15.0  # the front end's supervisor kills its workers 10 s after the drain


def frontend_stop_timeout_s(settings: StackSettings) -> float:
    """Returns the seconds that the front end may take to end after SIGTERM."""
    return settings.drain_timeout_s + _AFTER_DRAIN_S


def frontend_environment(
    settings: StackSettings, *, api_key: str | None = None, engine_dir: Path | None = None
) -> dict[str, str]:
    """Returns the launcher's own environment plus the settings that both share.

    `engine_dir` is None if every model of the deployment has its own engine.
    """
    environment = {
        **os.environ,
        "HOST": settings.host,
        "PORT": str(settings.port),
        "FRONTEND_WORKERS": str(settings.frontend_workers),
        "DRAIN_TIMEOUT_S": str(settings.drain_timeout_s),
        "TRITON_GRPC_PORT": str(settings.triton_grpc_port),
        "MODEL_NAME": settings.model_name,
        "EXECUTOR": settings.executor,
    }
    if settings.triton_inference == "private":
        environment["TRITON_GRPC_URL"] = settings.triton_addresses.grpc_url
    if engine_dir is not None:
        environment["ENGINE_DIR"] = str(engine_dir)
    if settings.deployment is not None:
        environment["DEPLOYMENT"] = str(settings.deployment.absolute())
    if api_key is not None:
        environment["API_KEY"] = api_key
    environment["API_KEYS_FILE"] = str(settings.keys_file)
    environment.setdefault("USAGE_DIR", str(settings.usage_dir))
    return environment


def create_frontend(
    settings: StackSettings,
    *,
    api_key: str | None,
    engine_dir: Path | None,
    log_dir: Path,
) -> ChildProcess:
    """Returns the front-end process, not yet started."""
    return ChildProcess(
        "The front end",
        python_program("frontend"),
        frontend_environment(settings, api_key=api_key, engine_dir=engine_dir),
        log_dir / "frontend.log",
        stop_timeout_s=frontend_stop_timeout_s(settings),
    )
