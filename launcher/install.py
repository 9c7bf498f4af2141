"""Installs the packages of a lock file into a virtual environment, with one line of progress. `make serve` runs it.

Standard library only: it runs before anything is installed. pip's own output goes to a log, whose end is shown if the
installation fails. Exit status 0, or 1 with the reason as the last line.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_FRAME_S = 0.1
_SIZE_MB = 260  # of all wheels of requirements/serve.lock
_TAIL_LINES = 12
_SIZE = re.compile(r"(?:Downloading|Using cached) \S+ \(([\d.,]+) (bytes|kB|MB|GB)\)")
_ERROR = re.compile(r"\s*(?:ERROR|error): (.+)")
_UNITS = {"bytes": 1e-6, "kB": 1e-3, "MB": 1.0, "GB": 1e3}
_NETWORK = ("connection", "name resolution", "timed out", "no matching distribution", "could not fetch", "proxy", "ssl")


@dataclass
class Progress:
    """Packages and megabytes that pip has fetched, read from its output."""

    total: int
    done: int = 0
    megabytes: float = 0.0
    current: str = ""

    def read(self, line: str) -> None:
        """Takes a line of pip's output."""
        if line.startswith("Ignoring "):  # a package of another platform or Python
            self.total -= 1
        elif line.startswith("Collecting "):
            self.done += 1
            self.current = re.split(r"[=<>!~\s]", line.removeprefix("Collecting "))[0]
        elif line.startswith("Installing collected packages"):
            self.current = "unpacking"
        elif size := _SIZE.search(line):
            self.megabytes += float(size[1].replace(",", "")) * _UNITS[size[2]]

    def __str__(self) -> str:
        return f"{self.done} of {self.total}, {self.megabytes:.0f} MB: {self.current}"


class Screen:
    """Shows one line for the current step; a terminal animates it."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()

    @contextmanager
    def step(self, label: str, done_label: str | None = None, progress: Progress | None = None) -> Iterator[None]:
        """Shows the step while the block runs, and its duration in seconds unless the block raises."""
        started_s, over = time.monotonic(), threading.Event()
        spinner = threading.Thread(target=self._spin, args=(label, progress, over), daemon=True)
        if self._is_terminal:
            spinner.start()
        else:
            _print(f"{label} ...")
        try:
            yield
        finally:
            over.set()
            if self._is_terminal:
                spinner.join()
                sys.stdout.write("\r\x1b[K")
        text = done_label or label
        if progress is not None:
            count = f"{progress.done} packages, {progress.megabytes:.0f} MB"
            text = f"{text}: {count if progress.done else 'all packages are there already'}"
        check, seconds = "✓", f"{time.monotonic() - started_s:.1f} s"
        _print(
            f"\x1b[32m{check}\x1b[0m {text} \x1b[2m{seconds}\x1b[0m"
            if self._is_terminal
            else f"{check} {text} {seconds}"
        )

    def _spin(self, label: str, progress: Progress | None, over: threading.Event) -> None:
        frame = 0
        while not over.wait(_FRAME_S):
            frame += 1
            text = f"{label} {progress}" if progress is not None else label
            text = text[: shutil.get_terminal_size().columns - 3]  # a line that wraps could not be replaced
            sys.stdout.write(f"\r\x1b[K\x1b[32m{_SPINNER[frame % len(_SPINNER)]}\x1b[0m {text}")
            sys.stdout.flush()


class InstallError(Exception):
    """A step failed. The message is the reason, and what to do."""


def install(venv: Path, lock: Path, project: Path, log: Path) -> None:
    """Creates the environment if it does not exist, installs the packages of `lock`, and the project in place.

    Raises InstallError.
    """
    screen = Screen()
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log.write_text("", encoding="utf-8")
    python = venv / "bin" / "python"
    if not python.exists():
        with screen.step(f"create {venv}"):
            _run([sys.executable, "-m", "venv", str(venv)], log)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--progress-bar", "off"]
    progress = Progress(len(re.findall(r"(?m)^[^\s#]+==", lock.read_text(encoding="utf-8"))))
    label = f"install packages, about {_SIZE_MB} MB, once:"
    with screen.step(label, "install", progress):
        _run([*pip, "--require-hashes", "--requirement", str(lock)], log, progress)
    with screen.step("install this project"):
        _run([*pip, "--no-build-isolation", "--editable", str(project)], log)


def _run(command: Sequence[str], log: Path, progress: Progress | None = None) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                if progress is not None:
                    progress.read(line)
    if process.returncode != 0:
        raise InstallError(_reason(log))


def _reason(log: Path) -> str:
    """Returns pip's last error as a sentence, with what to do."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [found[1] for line in lines if (found := _ERROR.match(line))]
    reason = (errors or lines or [""])[-1].strip().rstrip(".")
    text = "\n".join(lines[-40:]).lower()
    if "no space left" in text:
        remedy = "Free some disk space, and start again"
    elif any(word in text for word in _NETWORK):
        remedy = "pip reached no package index, or one without this package: check the network and `pip config list`"
    else:
        remedy = "Start again once that is mended; `make clean` removes what is installed so far"
    return f"{reason}. {remedy}. pip's whole output: {log}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit status."""
    parser = argparse.ArgumentParser(prog="launcher/install.py")
    parser.add_argument("venv", type=Path)
    parser.add_argument("--lock", type=Path, default=Path("requirements/serve.lock"))
    parser.add_argument("--project", type=Path, default=Path())
    parser.add_argument("--log", type=Path, default=Path(".run/logs/install.log"))
    options = parser.parse_args(arguments)
    try:
        install(options.venv, options.lock, options.project, options.log)
    except InstallError as error:
        tail = options.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        _print("\n".join(f"  {line}" for line in tail))
        _print(f"\nNot installed. {error}\n")
        return 1
    except OSError as error:
        _print(f"Not installed. {error.filename}: {error.strerror}.\n")
        return 1
    except KeyboardInterrupt:
        _print("Stopped. The next start goes on with the installation.")
        return 130
    return 0


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
