"""Adds packages to an image of NVIDIA's without moving one that is there. Runs while the image is built.

    install_into_image.py [--expect tensorrt_llm==1.2.1] --lock triton.lock [WHEEL ...]

Its torch, TensorRT and numpy are NVIDIA's own builds, and the engine is bound to them. So from the lock file comes only
what the image lacks, with its hashes and without dependencies; wheels of ours come without dependencies too. The build
fails when a version has changed, or when `pip check` has a complaint that it did not have before.
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
    """The program: 0, or 1 with the reason why the image must not be built like this."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--expect", help="a package that the image must have, as name==version")
    parser.add_argument("wheels", nargs="*")
    options = parser.parse_args(arguments)
    before, complaints = installed(), pip_complaints()
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
    problems = [*moved(before, installed()), *sorted(pip_complaints() - complaints)]
    sys.stderr.write("".join(f"{problem}\n" for problem in problems))
    return 1 if problems else 0


def missing_blocks(lock: str, present: set[str]) -> list[str]:
    """The requirements of a lock file, hashes and all, of packages that are not installed."""
    blocks = re.split(r"^(?=[A-Za-z0-9])", lock, flags=re.MULTILINE)[1:]
    return [block.rstrip() for block in blocks if normal(re.split(r"[=\s\[;]", block, maxsplit=1)[0]) not in present]


def unexpected(requirement: str, present: dict[str, str]) -> str | None:
    """What is wrong when the image has not this version of this package."""
    name, _, version = requirement.partition("==")
    found = present.get(normal(name), "none")
    return None if found.partition("+")[0] == version else f"The image was to have {name} {version} and has {found}."


def moved(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Packages that were there and are not what they were."""
    return [
        f"{name} was {version} and is {after.get(name, 'gone')} now."
        for name, version in sorted(before.items())
        if after.get(name) != version
    ]


def normal(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Version by name, read anew."""
    return {normal(found.metadata["Name"]): found.version for found in metadata.distributions() if found.metadata}


def pip_complaints() -> set[str]:
    """Lines of `pip check`; NVIDIA's image may have some of its own."""
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    return set() if done.returncode == 0 else set(done.stdout.splitlines())


def pip(*arguments: str) -> None:
    """Stops the build when pip fails; it has said why."""
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
