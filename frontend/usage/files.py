"""Usage in files, one for each day (UTC), readable by their owner only.

A file is a list of JSON lines that are only ever appended, by all front ends and workers that share the directory, each
with one write. A line that a crash or a full disk has cut is skipped by readers, and the next one begins after a line
break of its own. Days older than `keep_days` are deleted.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

import orjson

from frontend.usage.journal import Usage, UsageNotWrittenError, UsageOf, date_of

_DAY_S = 86_400
_PATTERN = "usage-*.jsonl"


class UsageFiles:
    """The files in one directory, which is created when something is written."""

    def __init__(self, directory: Path, keep_days: int) -> None:
        self._directory = directory
        self._keep_days = keep_days
        self._cleaned_day = 0

    async def write(self, rows: Sequence[tuple[UsageOf, Usage]]) -> None:
        """Appends the rows of one day, in a thread. Raises UsageNotWrittenError."""
        await asyncio.to_thread(self.append, rows)

    async def close(self) -> None:
        """Nothing is open between two writes."""

    def append(self, rows: Sequence[tuple[UsageOf, Usage]]) -> None:
        """Appends the rows of one day. Raises UsageNotWrittenError."""
        lines = [orjson.dumps({**asdict(of), **asdict(usage)}) for of, usage in rows]
        day = rows[0][0].day
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._delete_old(day)
            self._append_at_once(self._path(day), b"\n".join([b"", *lines, b""]))
        except OSError as error:
            raise UsageNotWrittenError(f"{self._directory}: {error.strerror}") from error

    def read(self, since: date | None = None, until: date | None = None) -> Iterator[tuple[UsageOf, Usage]]:
        """The rows of these days, both included. Lines that are not whole are skipped."""
        for path in sorted(self._directory.glob(_PATTERN)):
            day = _day_of(path)
            if day is None or (since is not None and day < since) or (until is not None and day > until):
                continue
            for line in path.read_bytes().splitlines():
                row = _row(line)
                if row is not None:
                    yield row

    def tokens_of_today(self) -> dict[str, int]:
        """The tokens that each key has used today. Empty if there is no file, or it cannot be read."""
        today = date_of(int(time.time()) // _DAY_S)
        tokens: dict[str, int] = {}
        try:
            for of, usage in self.read(today, today):
                tokens[of.key] = tokens.get(of.key, 0) + usage.prompt_tokens + usage.completion_tokens
        except OSError:
            return {}
        return tokens

    def _path(self, day: int) -> Path:
        return self._directory / f"usage-{date_of(day)}.jsonl"

    def _delete_old(self, today: int) -> None:
        if self._cleaned_day == today:
            return
        oldest = date_of(today - self._keep_days + 1)
        for path in self._directory.glob(_PATTERN):
            day = _day_of(path)
            if day is not None and day < oldest:
                path.unlink(missing_ok=True)
        self._cleaned_day = today

    @staticmethod
    def _append_at_once(path: Path, content: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, content) < len(content):  # the disk is full: half a row must not count
                os.ftruncate(descriptor, size)
                raise OSError(28, "No space left on device")
        finally:
            os.close(descriptor)


def _day_of(path: Path) -> date | None:
    try:
        return date.fromisoformat(path.stem.removeprefix("usage-"))
    except ValueError:
        return None


def _row(line: bytes) -> tuple[UsageOf, Usage] | None:
    try:
        row = orjson.loads(line)
        return (
            UsageOf(int(row["day"]), row["key"], row["tenant"], row["model"]),
            Usage(int(row["requests"]), int(row["prompt_tokens"]), int(row["completion_tokens"])),
        )
    except (ValueError, KeyError, TypeError):
        return None
