"""The processes in which a Triton server runs its Python models ("stubs"): which live, and when one has died for good.

Triton 2.51 does not start the dead stub of a decoupled model again, and that of preprocess not always: every request
to it then fails for good with "Stub process 'decode_0_0' is not healthy" (both seen), while the server calls itself
live and ready. So whoever started the server has to look. From /proc alone: the image for GPUs has no psutil of ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PERIOD_S = 0.5  # between two looks
_PATIENCE = 2  # looks; one may fall into the moment when a process begins or ends
_STUB_NAME = "triton_python_b"  # as far as the kernel keeps names
_PROC = Path("/proc")


class StubInventory:
    """Looks at the stubs of one server, again and again."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._most: Counter[str] = Counter()  # the most stubs that each model has had
        self._looks = 0

    def look(self) -> str | None:
        """The model that has had fewer stubs than before for `_PATIENCE` looks; None while all is well."""
        found = living_stubs(self._server)
        if found is None:
            return None  # the server itself is gone, which others notice
        self._most |= found
        missing = sorted(self._most - found)
        self._looks = self._looks + 1 if missing else 0
        return missing[0] if self._looks >= _PATIENCE else None


def living_stubs(server: int) -> Counter[str] | None:
    """How many stubs each model has, by the model's name; None when there is no such server."""
    if not (_PROC / str(server)).exists():
        return None
    return Counter(name for pid in child_pids(server) if (name := _model_of(pid)))


def child_pids(parent: int) -> Iterator[int]:
    """Of all its threads; none when it has ended."""
    for children in (_PROC / str(parent) / "task").glob("*/children"):
        with suppress(OSError):  # the thread has ended meanwhile
            yield from map(int, children.read_text().split())


def arguments_of(pid: int) -> list[str]:
    """The command line of a process; empty when it has ended, or waits to be reaped."""
    try:
        return [part.decode(errors="replace") for part in (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")]
    except OSError:
        return []


def _model_of(pid: int) -> str | None:
    """A stub's arguments hold MODEL/VERSION/model.py; None for every other process."""
    try:
        if not (_PROC / str(pid) / "comm").read_text().startswith(_STUB_NAME):
            return None
    except OSError:
        return None
    return next((Path(part).parts[-3] for part in arguments_of(pid) if part.endswith("/model.py")), None)
