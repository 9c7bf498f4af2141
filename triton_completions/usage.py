"""`triton-completions usage`: prints what keys have used, as CSV, from where the front ends keep it."""

from __future__ import annotations

import asyncio
import csv
import sys
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import Field, ValidationError
from rich.console import Console

from frontend.settings import RedisUrl
from frontend.usage.files import UsageFiles
from frontend.usage.journal import Usage, UsageOf, date_of
from launcher.setting_problems import setting_problems
from launcher.settings import StackSettings

_COLUMNS = ("date", "key", "tenant", "model", "requests", "prompt_tokens", "completion_tokens", "total_tokens")
_ERR = Console(stderr=True, soft_wrap=True)
_DATE = ["%Y-%m-%d"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class UsageSettings(StackSettings):
    """Where usage is kept."""

    usage_dir_setting: Path | None = Field(None, validation_alias="USAGE_DIR")
    limits_url: RedisUrl | None = None
    usage_days: int = 90

    @property
    def directory(self) -> Path:
        """The directory of the usage files."""
        return self.usage_dir_setting or self.usage_dir


def main(arguments: Sequence[str], *, program: str) -> int:
    """Runs the program and returns its exit status: 0 done, 1 failed, 2 wrong usage."""
    try:
        app(list(arguments), prog_name=program)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@app.command()
def usage(
    since: Annotated[datetime | None, typer.Option(formats=_DATE, help="First day (UTC). Default: 30 days ago")] = None,
    until: Annotated[datetime | None, typer.Option(formats=_DATE, help="Last day. Default: today.")] = None,
    key: Annotated[list[str] | None, typer.Option(help="Only this key; may be repeated.")] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Default: USAGE_DIR, or usage in RUN_DIR; with LIMITS_URL, Redis.")
    ] = None,
) -> None:
    """Print what keys have used, a line for each day (UTC), key and model, as CSV."""
    today = datetime.now(timezone.utc).date()
    last = today if until is None else until.date()
    first = last - timedelta(days=30) if since is None else since.date()
    if first > last:
        raise typer.BadParameter("--since is later than --until.")
    rows = _read(directory, first, last)
    _write(rows if not key else [row for row in rows if row[0].key in key])


def _read(directory: Path | None, first: date, last: date) -> list[tuple[UsageOf, Usage]]:
    try:
        settings = UsageSettings()
    except ValidationError as error:
        _fail("\n".join(setting_problems(UsageSettings, error)))
    if directory is None and settings.limits_url is not None:
        return asyncio.run(_read_redis(settings.limits_url.get_secret_value(), settings.usage_days, first, last))
    folder = directory or settings.directory
    if not folder.is_dir():
        _fail(f"{folder} does not exist: no usage has been written there. Name the directory with --dir or USAGE_DIR.")
    try:
        return list(UsageFiles(folder, settings.usage_days).read(first, last))
    except OSError as error:
        _fail(f"{error.filename or folder} cannot be read: {error.strerror}")


async def _read_redis(url: str, keep_days: int, first: date, last: date) -> list[tuple[UsageOf, Usage]]:
    from frontend.redis_client import RedisClient, RedisUnavailableError
    from frontend.usage.redis_usage import RedisUsage

    kept = RedisUsage(RedisClient(url), keep_days)
    try:
        return [row async for row in kept.read(first, last)]
    except RedisUnavailableError as error:
        _fail(f"LIMITS_URL does not answer ({error}).")
    finally:
        await kept.close()


def _write(rows: Iterable[tuple[UsageOf, Usage]]) -> None:
    sums: dict[UsageOf, Usage] = {}
    for of, amount in rows:
        sums[of] = sums.get(of, Usage(0, 0, 0)) + amount
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for of in sorted(sums, key=lambda of: (of.day, of.key, of.tenant, of.model)):
        used = sums[of]
        total = used.prompt_tokens + used.completion_tokens
        amounts = (used.requests, used.prompt_tokens, used.completion_tokens, total)
        writer.writerow([date_of(of.day), of.key, of.tenant, of.model, *amounts])


def _fail(message: str) -> NoReturn:
    _ERR.print(f"error: {message}", style="red", markup=False, highlight=False)
    raise typer.Exit(1)
