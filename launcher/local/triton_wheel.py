"""The tritonserver inside the nvidia-pytriton wheel: made ready for this interpreter, and its command line.

The wheel holds the server, the Python backend and one stub for each CPython; the stub must stand beside the backend's
library, so a backends folder is put together once (RUN_DIR/triton/...). Nothing of pytriton itself is imported.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from launcher.check_python import libpython
from launcher.local.preflight import PreflightError
from launcher.settings import REPOSITORY_ROOT, StackSettings

_WHEEL = "nvidia-pytriton"
_EXIT_TIMEOUT_S = 10
_SHARED_MEMORY = Path("/dev/shm")


def _server_root() -> Path:
    try:
        distribution = metadata.distribution(_WHEEL)
    except metadata.PackageNotFoundError as error:
        raise PreflightError(f"The {_WHEEL} wheel is not installed. Run `make install`.") from error
    return Path(str(distribution.locate_file("pytriton/tritonserver")))


def prepare_backends(run_dir: Path) -> Path:
    """The backends folder for this interpreter; put together when it is not there yet. Safe for two starts at once."""
    root = _server_root()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    target = run_dir / "triton" / f"{metadata.version(_WHEEL)}-python{python}"
    if target.is_dir():
        return target
    stub = root / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.exists():
        raise PreflightError(f"Triton's wheel has no stub for Python {python}. Use Python 3.10, 3.11 or 3.12.")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    try:
        shutil.copytree(root / "backends" / "python", draft / "python", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(stub, draft / "python")
        # mkdtemp's folder is its maker's alone, and an image may be built by one user and run by another.
        draft.chmod(0o755)
        draft.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        # Another start was quicker; its folder is as good.
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def new_shared_memory_prefix(settings: StackSettings) -> str:
    """What the names of one launcher's regions in /dev/shm begin with, and those of no other."""
    return f"triton_completions_{settings.triton_grpc_port}_{secrets.token_hex(4)}_"


def remove_shared_memory(prefix: str) -> None:
    """Remove the regions with these names: a Triton that was killed leaves them behind, some MiB for each model."""
    for path in _SHARED_MEMORY.glob(f"{prefix}*"):
        with suppress(OSError):
            path.unlink()


def command(
    settings: StackSettings,
    backends: Path,
    repository: Path = REPOSITORY_ROOT / "model_repository",
    *,
    shared_memory_prefix: str | None = None,
) -> list[str]:
    """The server's command line: loopback only, no GPU metrics, models as their config.pbtxt says.

    Its regions in /dev/shm get a prefix of their own unless one is given.
    """
    address = "127.0.0.1"
    return [
        str(_server_root() / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--http-address={address}",
        f"--http-port={settings.triton_http_port}",
        f"--grpc-address={address}",
        f"--grpc-port={settings.triton_grpc_port}",
        f"--metrics-address={address}",
        f"--metrics-port={settings.triton_metrics_port}",
        # Stubs of two servers on one machine share /dev/shm and must not share names.
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix or new_shared_memory_prefix(settings)}",
        "--backend-config=python,stub-timeout-seconds=120",
        "--disable-auto-complete-config",
        "--allow-gpu-metrics=false",
        f"--exit-timeout-secs={_EXIT_TIMEOUT_S}",
    ]


def environment(settings: StackSettings, engine_dir: Path | None) -> dict[str, str]:
    """The server's environment: its libraries, this interpreter for its stubs, and the models' settings.

    `engine_dir` None: every model names its own in its config.pbtxt.
    """
    libraries = [str(Path(str(metadata.distribution(_WHEEL).locate_file("nvidia_pytriton.libs"))))]
    shared = libpython()
    if shared is not None and shared.is_absolute():
        libraries.append(str(shared.parent))
    if inherited := os.environ.get("LD_LIBRARY_PATH"):
        libraries.append(inherited)
    inherited_names = os.environ.keys() - {"API_KEY"}  # the front end's; Triton has no use for it
    return {
        **{name: os.environ[name] for name in inherited_names},
        "LD_LIBRARY_PATH": ":".join(libraries),
        # The stub runs the first python3 on PATH, which must be the one that this package is installed for.
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        **({} if engine_dir is None else {"ENGINE_DIR": str(engine_dir)}),
        "EXECUTOR": settings.executor,
    }
