"""Runs the tritonserver of the nvidia-pytriton wheel: backends for this interpreter, command line, environment.

The wheel contains the server, the Python backend and one stub for each CPython version. Triton looks for the stub in
the folder of the backend's library, so a backends folder is assembled once (RUN_DIR/triton/...). Nothing of pytriton
itself is imported.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path

from launcher.check_python import libpython
from launcher.local.errors import PreflightError
from launcher.local.processes import ChildProcess
from launcher.private_files import make_private
from launcher.settings import MODEL_REPOSITORY, StackSettings
from launcher.triton_access import closing_arguments
from launcher.triton_tracing import trace_arguments
from llm_pipeline.runtime.tracing_settings import TracingSettings

WHEEL = "nvidia-pytriton"
TRITON_STOP_TIMEOUT_S = 20.0
_EXIT_TIMEOUT_S = 10
_STUB_TIMEOUT_S = 120
_SHARED_MEMORY = Path("/dev/shm")
_REGION_PREFIX = "triton_completions_"
_STUB_NAME = "triton_python_backend_stub"


def create_triton(
    settings: StackSettings,
    *,
    engine_dir: Path | None,
    repository: Path,
    run_dir: Path,
    log_dir: Path,
) -> ChildProcess:
    """Returns the Triton process, not yet started. Its shared memory and sockets are removed whenever it ends.

    Raises PreflightError if the wheel cannot serve this interpreter, OSError if `run_dir` is not writable.
    """
    backends = prepare_backends(run_dir)
    prefix = new_shared_memory_prefix(settings)
    make_shared_memory_private()
    settings.triton_addresses.remove_sockets()  # of a launcher that was killed
    return ChildProcess(
        "Triton",
        tritonserver_command(settings, backends, repository, shared_memory_prefix=prefix),
        environment(settings, engine_dir),
        log_dir / "triton.log",
        stop_timeout_s=TRITON_STOP_TIMEOUT_S,
        on_exit=partial(_clean_up, settings, prefix),
    )


def find_server_root(wheel: str = WHEEL) -> Path:
    """Returns the folder of the server in an installed wheel. Raises PreflightError if the wheel is missing."""
    try:
        distribution = metadata.distribution(wheel)
    except metadata.PackageNotFoundError as error:
        raise PreflightError(f"The package {wheel} is not installed. Run `make install`.") from error
    return Path(str(distribution.locate_file("pytriton/tritonserver")))


def prepare_backends(run_dir: Path, server_root: Path | None = None) -> Path:
    """Returns the backends folder for this interpreter, and assembles it if it does not exist yet.

    Several starts may call it at once. `server_root` defaults to the wheel's. Raises PreflightError if the wheel is
    missing or has no stub for this Python version, OSError if `run_dir` is not writable.
    """
    root = server_root or find_server_root()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    target = run_dir / "triton" / f"{metadata.version(WHEEL)}-python{python}"
    if target.is_dir():
        return target
    stub = root / "python_backend_stubs" / python / _STUB_NAME
    if not stub.exists():
        raise PreflightError(f"Triton's wheel has no stub for Python {python}. Use Python 3.10, 3.11 or 3.12.")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    try:
        shutil.copytree(root / "backends" / "python", draft / "python", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(stub, draft / "python")
        draft.chmod(0o755)  # mkdtemp makes it private, and an image may be built by one user and run by another
        draft.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        # A concurrent start has created the same folder first.
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def new_shared_memory_prefix(settings: StackSettings) -> str:
    """Returns a prefix, unique to one start, for the names of the server's regions in /dev/shm."""
    return f"{_REGION_PREFIX}{settings.triton_grpc_port}_{secrets.token_hex(4)}_"


def make_shared_memory_private(folder: Path = _SHARED_MEMORY) -> None:
    """Takes the rights of other users from regions that earlier releases, or launchers that were killed, have left."""
    for path in folder.glob(f"{_REGION_PREFIX}*"):
        with suppress(OSError):
            make_private(path)


def _clean_up(settings: StackSettings, prefix: str) -> None:
    """Removes what a killed server leaves."""
    remove_shared_memory(prefix)
    settings.triton_addresses.remove_sockets()


def remove_shared_memory(prefix: str, folder: Path = _SHARED_MEMORY) -> None:
    """Removes the regions with this prefix: a killed Triton leaves them, some MiB for each model."""
    for path in folder.glob(f"{prefix}*"):
        with suppress(OSError):
            path.unlink()


def tritonserver_command(
    settings: StackSettings,
    backends: Path,
    repository: Path = MODEL_REPOSITORY,
    *,
    shared_memory_prefix: str | None = None,
) -> list[str]:
    """Returns the server's command line: it can be reached from this machine only, its management APIs are closed, and
    it takes model configs as they are written.

    Without a `shared_memory_prefix`, a new one is generated. Raises PreflightError if the wheel is missing.
    """
    addresses = settings.triton_addresses
    return [
        str(find_server_root() / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--http-address={addresses.http_address}",
        f"--http-port={settings.triton_http_port}",
        f"--grpc-address={addresses.grpc_address}",
        f"--grpc-port={settings.triton_grpc_port}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={settings.triton_metrics_port}",
        # Stubs of two servers on one machine share /dev/shm, so their names must differ.
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix or new_shared_memory_prefix(settings)}",
        f"--backend-config=python,stub-timeout-seconds={_STUB_TIMEOUT_S}",
        "--disable-auto-complete-config",
        "--allow-gpu-metrics=false",
        f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
        *closing_arguments(settings.triton_open_apis),
        *trace_arguments(TracingSettings()),
    ]


def environment(settings: StackSettings, engine_dir: Path | None) -> dict[str, str]:
    """Returns the server's environment: its libraries, this interpreter for its stubs, and the models' settings.

    `engine_dir` is None if every model names its own engine in its config.pbtxt.
    """
    libraries = [str(Path(str(metadata.distribution(WHEEL).locate_file("nvidia_pytriton.libs"))))]
    shared = libpython()
    if shared is not None and shared.is_absolute():
        libraries.append(str(shared.parent))
    if inherited := os.environ.get("LD_LIBRARY_PATH"):
        libraries.append(inherited)
    inherited_names = os.environ.keys() - {"API_KEY", "TENANT_SECRET"}  # only the front end needs them
    return {
        **{name: os.environ[name] for name in inherited_names},
        "LD_LIBRARY_PATH": ":".join(libraries),
        # The stub runs the first python3 on PATH, which must be the one that this package is installed for.
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        **({} if engine_dir is None else {"ENGINE_DIR": str(engine_dir)}),
        "EXECUTOR": settings.executor,
    }
