"""Can this Python run the stack? Run by the Makefile before anything is installed: standard library only, and
syntax that any Python since 3.6 reads. Exit status 0, or 1 with what is missing and its remedy on standard error.
"""

import ctypes
import sys
import sysconfig
from pathlib import Path


def _version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _library() -> str:
    return f"libpython{_version()}.so.1.0"


def libpython() -> "Path | None":
    """The shared libpython of this interpreter, which Triton's Python stub loads; None when there is none."""
    name = _library()
    for folder in (sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LIBPL"), f"{sys.base_prefix}/lib"):
        if folder and (Path(folder) / name).exists():
            return Path(folder) / name
    try:
        ctypes.CDLL(name)
    except OSError:
        return None
    return Path(name)


def find_libpython_problem() -> "str | None":
    """What to do about a shared libpython that is missing; None when it is there."""
    if libpython() is not None:
        return None
    version = _version()
    return (
        f"Triton's Python backend needs the shared library {_library()}, which {sys.executable} does not have. Debian, "
        f"Ubuntu: apt-get install libpython{version}. pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install "
        f"{version}. Or use another Python: make serve PYTHON=/path/to/python3"
    )


def find_problem() -> "str | None":
    """What is wrong with this interpreter, or None."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        return (
            f"Python 3.10, 3.11 or 3.12 is needed, and {sys.executable} is {_version()}. Install one (Debian, Ubuntu: "
            "apt-get install python3.11 python3.11-venv libpython3.11), then: make serve PYTHON=python3.11"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return f"This Python can't make virtual environments. Debian, Ubuntu: apt-get install python{_version()}-venv"
    return find_libpython_problem()


if __name__ == "__main__":
    problem = find_problem()
    if problem:
        sys.stderr.write(problem + "\n")
        sys.exit(1)
