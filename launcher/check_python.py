"""Checks whether this Python can run the stack. The Makefile runs it before anything is installed.

Standard library only, in syntax that Python 3.6 and later parse. Exit status 0, or 1 with the problem and its remedy on
standard error.
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
    """Returns the shared libpython of this interpreter, which Triton's Python stub loads; None if it is missing."""
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
    """Returns the remedy for a missing shared libpython; None if it is present."""
    if libpython() is not None:
        return None
    version = _version()
    return (
        f"Triton's Python backend needs the shared library {_library()}, which {sys.executable} lacks. On Debian and "
        f"Ubuntu: apt-get install libpython{version}. With pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install "
        f"{version}. Or use another Python: make serve PYTHON=/path/to/python3"
    )


def find_problem() -> "str | None":
    """Returns why this interpreter cannot run the stack, with the remedy; None if it can."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        return (
            f"Python 3.10, 3.11 or 3.12 is required; {sys.executable} is {_version()}. Install one (Debian, Ubuntu: "
            "apt-get install python3.11 python3.11-venv libpython3.11), then: make serve PYTHON=python3.11"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        package = f"python{_version()}-venv"
        return f"This Python cannot create virtual environments. On Debian and Ubuntu: apt-get install {package}"
    return find_libpython_problem()


if __name__ == "__main__":
    problem = find_problem()
    if problem:
        sys.stderr.write(problem + "\n")
        sys.exit(1)
