# ruff: noqa: UP031 - f-strings would not parse on the old Pythons that this must refuse
"""Can this Python run the stack? Run by the Makefile before anything is installed, so: standard library only, and
syntax that old Pythons can read. Exit status 0, or 1 with what is missing and how to mend it on standard error.
"""

import ctypes
import os
import sys
import sysconfig


def find_problem():
    """What is wrong with this interpreter, or None."""
    version = "%d.%d" % sys.version_info[:2]
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        return (
            "Python 3.10, 3.11 or 3.12 is needed, and %s is %s. Install one (Debian, Ubuntu: apt-get install "
            "python3.11 python3.11-venv libpython3.11), then: make serve PYTHON=python3.11" % (sys.executable, version)
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return "This Python can't make virtual environments. Debian, Ubuntu: apt-get install python%s-venv" % version
    name = "libpython%s.so.1.0" % version
    folders = [sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LIBPL"), sys.base_prefix + "/lib"]
    if any(folder and os.path.exists(os.path.join(folder, name)) for folder in folders):
        return None
    try:
        ctypes.CDLL(name)
    except OSError:
        return (
            "Triton's Python backend needs the shared library %s, which %s does not have. Debian, Ubuntu: apt-get "
            "install libpython%s. pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install %s. Or use another "
            "Python: make serve PYTHON=/path/to/python3" % (name, sys.executable, version, version)
        )
    return None


if __name__ == "__main__":
    problem = find_problem()
    if problem:
        sys.stderr.write(problem + "\n")
        sys.exit(1)
