"""Adds the shared libraries that copied programs need and this image lacks. Runs while an image is built.

    complete_libraries.py --from /triton --into /opt/tritonserver/libraries PROGRAM ...

The programs come from another image, whose root is at `--from`. Only libraries that the loader does not find are
copied, so nothing of this image is replaced or hidden. Python and CUDA have to be this image's own, because they share
a process with the programs: the build fails if those are missing, or if a program needs a newer C library.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_FOLDERS = ("usr/lib/*-linux-gnu", "usr/lib", "usr/local/lib", "lib/*-linux-gnu")
_OWN = re.compile(r"lib(python3|cuda|nv|cublas|cudnn|cufft|nccl)")
_OF_THE_DRIVER = {"libcuda.so.1", "libnvidia-ml.so.1"}  # mounted when a container starts


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status: 0, or 1 after writing the problems to standard error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--into", dest="target", type=Path, required=True)
    parser.add_argument("programs", type=Path, nargs="+")
    options = parser.parse_args(arguments)
    problems = complete(options.programs, options.source, options.target)
    sys.stderr.write("".join(f"{problem}\n" for problem in problems))
    return 1 if problems else 0


def complete(programs: Sequence[Path], source: Path, target: Path) -> list[str]:
    """Copies what the programs and the copied libraries lack, and returns the problems."""
    target.mkdir(parents=True, exist_ok=True)
    missing_programs = [f"{path} does not exist." for path in programs if not path.is_file()]
    problems: set[str] = set()
    waiting = [path for path in programs if path.is_file()]
    while waiting:
        path = waiting.pop()
        report = run_ldd(path, target)
        problems.update(f"{path.name} needs {version}, which this image lacks." for version in missing_versions(report))
        for name in missing_libraries(report):
            found = None if _OWN.match(name) else find(source, name)
            if found is None:
                problems.add(f"{path.name} needs {name}, which is missing here and can't be copied from {source}.")
            elif not (target / name).exists():
                shutil.copy2(found, target / name)
                sys.stdout.write(f"copied {name} for {path.name}\n")
                waiting.append(target / name)
    return [*missing_programs, *sorted(problems)]


def run_ldd(path: Path, target: Path) -> str:
    """Returns what the loader would load for a program, with the copied libraries after all others."""
    inherited = os.environ.get("LD_LIBRARY_PATH")
    folders = ":".join([*([inherited] if inherited else []), str(target)])
    environment = {**os.environ, "LD_LIBRARY_PATH": folders, "LC_ALL": "C"}
    done = subprocess.run(["ldd", str(path)], env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def missing_libraries(report: str) -> Iterator[str]:
    """Yields the names of libraries that the loader did not find, without those of the driver."""
    for name in re.findall(r"^\s*(\S+) => not found", report, re.MULTILINE):
        if name not in _OF_THE_DRIVER:
            yield name


def missing_versions(report: str) -> Iterator[str]:
    """Yields versions of symbols, such as GLIBC_2.40, that the libraries here do not have."""
    yield from dict.fromkeys(re.findall(r"version [`'](\S+)' not found", report))


def find(source: Path, name: str) -> Path | None:
    """Returns a library of the other image; None if it has none of this name."""
    for pattern in _FOLDERS:
        for folder in source.glob(pattern):
            path = folder / name
            while path.is_symlink():  # an absolute link is one of the other image
                link = path.readlink()
                path = source / link.relative_to("/") if link.is_absolute() else path.parent / link
            if path.is_file():
                return path
    return None


if __name__ == "__main__":
    sys.exit(main())
