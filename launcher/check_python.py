"""Can this Python run the stack? Run by the Makefile before anything is installed: standard library only, and
syntax that any Python since 3.6 reads. Exit status 0, or 1 with what is missing and its remedy on standard error.
"""

import ctypes
import os
import sys
import sysconfig


def find_problem() -> "str | None":
    """What is wrong with this interpreter, or None."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        return (
            f"Python 3.10, 3.11 or 3.12 is needed, and {sys.executable} is {version}. Install one (Debian, Ubuntu: "
            "apt-get install python3.11 python3.11-venv libpython3.11), then: make serve PYTHON=python3.11"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return f"This Python can't make virtual environments. Debian, Ubuntu: apt-get install python{version}-venv"
    name = f"libpython{version}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LIBPL"), sys.base_prefix + "/lib"]
    if any(folder and os.path.exists(os.path.join(folder, name)) for folder in folders):
        return None
    try:
        ctypes.CDLL(name)
    except OSError:
        return (
            f"Triton's Python backend needs the shared library {name}, which {sys.executable} does not have. Debian, "
            f"Ubuntu: apt-get install libpython{version}. pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install "
            f"{version}. Or use another Python: make serve PYTHON=/path/to/python3"
        )
    return None


if __name__ == "__main__":
    problem = find_problem()
    if problem:
        sys.stderr.write(problem + "\n")
        sys.exit(1)
