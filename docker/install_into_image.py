"""Adds packages to NVIDIA's image without changing the version of an installed one. Runs while the image is built.

    install_into_image.py [--expect tensorrt_llm==1.2.1] --lock triton.lock [WHEEL ...]

The image's torch, TensorRT and numpy are NVIDIA's own builds, which the engine depends on. So only packages that the
image lacks are installed from the lock file, with hashes and without dependencies, and the given wheels without
dependencies. The build fails if a version has changed, or if `pip check` reports a new problem.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status: 0, or 1 after writing the problems to standard error."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--expect", help="a package that the image must contain, as name==version")
    parser.add_argument("wheels", nargs="*")
    options = parser.parse_args(arguments)
    before, problems_before = installed(), pip_problems()
    if options.expect and (problem := unexpected(options.expect, before)):
        sys.stderr.write(f"{problem}\n")
        return 1
    missing = missing_blocks(options.lock.read_text(encoding="utf-8"), set(before))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(missing) + "\n")
        file.flush()
        if missing:
            pip("install", "--no-cache-dir", "--no-deps", "--require-hashes", "--requirement", file.name)
    if options.wheels:
        pip("install", "--no-cache-dir", "--no-deps", *options.wheels)
    problems = [*changed(before, installed()), *sorted(pip_problems() - problems_before)]
    sys.stderr.write("".join(f"{problem}\n" for problem in problems))
    return 1 if problems else 0


def missing_blocks(lock: str, present: set[str]) -> list[str]:
    """Returns the requirements, with their hashes, of a lock file's packages that are not installed."""
    blocks = re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)[1:]
    return [block.rstrip() for block in blocks if normal(re.split(r"[=\s\[;]", block, maxsplit=1)[0]) not in present]


def unexpected(requirement: str, present: dict[str, str]) -> str | None:
    """Returns the problem if the image lacks this version of a package; None if it has it."""
    name, _, version = requirement.partition("==")
    installed_version = present.get(normal(name), "none")
    return (
        None
        if installed_version.partition("+")[0] == version
        else f"The image has {name} {installed_version}; expected {version}."
    )


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Returns a line for each package whose version has changed or that was removed."""
    return [
        f"{name} changed from {version} to {after.get(name, 'removed')}."
        for name, version in sorted(before.items())
        if after.get(name) != version
    ]


def normal(name: str) -> str:
    """Returns a package name in the normal form of PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Returns the version of each installed package by name."""
    return {
        normal(package.metadata["Name"]): package.version for package in metadata.distributions() if package.metadata
    }


def pip_problems() -> set[str]:
    """Returns the lines of `pip check`, of which NVIDIA's image may have some from the start."""
    result = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    return set() if result.returncode == 0 else set(result.stdout.splitlines())


def pip(*arguments: str) -> None:
    """Runs pip. Raises CalledProcessError, which fails the build, if pip fails."""
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
