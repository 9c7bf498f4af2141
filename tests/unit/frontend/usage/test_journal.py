"""What keys have used: added up, written, read, kept for its days, and not lost or counted twice by failures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import pytest

from frontend.api_key import ApiKey
from frontend.observability.request_record import RequestRecord
from frontend.redis_client import RedisClient
from frontend.usage.files import UsageFiles
from frontend.usage.journal import Usage, UsageJournal, UsageNotWrittenError, UsageOf, date_of, day_of
from frontend.usage.redis_usage import RedisUsage
from tests.support.app import MODEL, in_process
from tests.support.clock import Clock
from tests.support.keys import bearer, write_keys
from tests.support.redis_server import running_redis
from tests.support.waiting import DEADLINE_S

DAY = 20_000
KEY = ApiKey(name="a", sha256="0" * 64, tenant="t")


def record(prompt: int = 3, completion: int = 4, key: ApiKey | None = KEY) -> RequestRecord:
    made = RequestRecord("id", "POST", "/", "", False, key=key)
    made.served_model, made.prompt_tokens, made.completion_tokens = "m", prompt, completion
    return made


def row(day: int = DAY, key: str = "a", requests: int = 1) -> tuple[UsageOf, Usage]:
    return UsageOf(day, key, "t", "m"), Usage(requests, 3 * requests, 4 * requests)


class Sink:
    """A sink that can fail."""

    def __init__(self) -> None:
        self.fails = False
        self.rows: list[tuple[UsageOf, Usage]] = []

    async def write(self, rows: Sequence[tuple[UsageOf, Usage]]) -> None:
        if self.fails:
            raise UsageNotWrittenError("full")
        assert len({of.day for of, _ in rows}) == 1
        self.rows += rows

    async def close(self) -> None:
        pass


async def test_requests_of_a_key_and_model_are_one_row() -> None:
    sink = Sink()
    journal = UsageJournal(sink, wall=lambda: DAY * 86_400.0)
    for _ in range(3):
        journal.add(record())
    journal.add(record(key=None))
    await journal.flush()
    await journal.flush()
    assert sink.rows == [row(requests=3)]


async def test_what_cannot_be_written_is_written_later() -> None:
    sink, clock = Sink(), Clock(DAY * 86_400.0)
    journal = UsageJournal(sink, wall=clock)
    sink.fails = True
    journal.add(record())
    await journal.flush()
    journal.add(record())
    clock.now_s += 86_400
    journal.add(record())
    sink.fails = False
    await journal.close()
    assert sink.rows == [row(requests=2), row(DAY + 1)]


def test_files_are_private_and_add_up(tmp_path: Path) -> None:
    folder = tmp_path / "usage"
    one, other = (UsageFiles(folder, 90) for _ in range(2))
    one.append([row(), row(key="b")])
    other.append([row()])
    other.append([row(DAY + 1)])
    assert list(one.read()) == [row(), row(key="b"), row(), row(DAY + 1)]
    assert list(one.read(date_of(DAY + 1), date_of(DAY + 1))) == [row(DAY + 1)]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("rest", [b'{"day": 20000, "key": "a", "ten', b"\xff\n", b'{"day": "x"}\n', b"[]\n", b"7"])
def test_a_line_that_a_crash_has_cut_costs_only_itself(tmp_path: Path, rest: bytes) -> None:
    files = UsageFiles(tmp_path, 90)
    files.append([row()])
    with (tmp_path / f"usage-{date_of(DAY)}.jsonl").open("ab") as file:
        file.write(rest)
    files.append([row(key="b")])
    assert list(files.read()) == [row(), row(key="b")]


def test_old_days_are_deleted(tmp_path: Path) -> None:
    files = UsageFiles(tmp_path, 2)
    (tmp_path / "usage-notes.jsonl").touch()
    for day in (DAY, DAY + 1, DAY + 2):
        files.append([row(day)])
    assert [of.day for of, _ in files.read()] == [DAY + 1, DAY + 2]
    assert (tmp_path / "usage-notes.jsonl").exists()


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageNotWrittenError, match="file"):
        UsageFiles(tmp_path / "file" / "usage", 90).append([row()])


async def test_redis_adds_up_for_all_front_ends(tmp_path: Path) -> None:
    with running_redis(tmp_path) as url:
        one, other = (RedisUsage(RedisClient(url, timeout_s=DEADLINE_S), 90) for _ in range(2))
        await one.write([row(), row(key="b")])
        await other.write([row()])
        await other.write([row(DAY + 1)])
        found = [found async for found in one.read(date_of(DAY), date_of(DAY + 5))]
        assert found == [row(requests=2), row(key="b"), row(DAY + 1)]
        await one.close()
        await other.close()


def test_days_and_dates() -> None:
    assert date_of(0) == date(1970, 1, 1)
    assert day_of(date_of(DAY) + timedelta(days=1)) == DAY + 1


async def test_a_front_end_writes_its_usage_at_the_end_and_the_next_one_goes_on_with_the_budget(tmp_path: Path) -> None:
    keys = write_keys(tmp_path / "keys.json", {"name": "a", "tokens_per_day": 20}, {"name": "b"})
    body = {"model": MODEL, "prompt": "Hi", "max_tokens": 4}

    async def statuses(count: int) -> list[int]:
        async with in_process(api_keys_file=keys, usage_dir=tmp_path / "usage") as app:
            sent = [await app.client.post("/v1/completions", json=body, headers=bearer("a")) for _ in range(count)]
            return [response.status_code for response in sent]

    day = int(time.time()) // 86_400
    assert await statuses(2) == [200, 200]  # 9 tokens each
    assert await statuses(1) == [429]
    if int(time.time()) // 86_400 == day:
        assert UsageFiles(tmp_path / "usage", 90).tokens_of_today() == {"a": 18}
