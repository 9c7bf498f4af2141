"""`triton-completions keys`: adds, lists, revokes and rotates API keys in the file that the server reads.

A key is made here and printed once, to stdout; the file has only its hash. No key is ever an argument: other users of
the machine can read command lines.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from frontend.api_key import ApiKey, PreviousKey
from frontend.keys.keys_editor import KeysEditError, editing, listed_keys
from frontend.keys.keys_file import reason_of
from launcher.setting_problems import setting_problems
from launcher.settings import StackSettings

_OUT, _ERR = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)
_DURATION = re.compile(r"(\d{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_RESERVED_NAME = "default"  # of API_KEY, in metrics and usage

app = typer.Typer(
    help="Add, list, revoke and rotate API keys. A running server follows within a second.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Argument(help="Name of the key, in metrics, logs and usage.")]
File = Annotated[
    Path | None,
    typer.Option("--file", help="The keys file. Default: API_KEYS_FILE, or api-keys.json in RUN_DIR."),
]
InPlace = Annotated[bool, typer.Option("--in-place", help="Write into the file: for one that is mounted by itself.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main(arguments: Sequence[str], *, program: str) -> int:
    """Runs the program and returns its exit status: 0 done, 1 failed, 2 wrong usage."""
    try:
        app(list(arguments), prog_name=program)
    except SystemExit as end:
        return int(end.code or 0)
    except KeysEditError as error:
        _ERR.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 1
    return 0


@app.command()
def add(
    name: Name,
    tenant: Annotated[str | None, typer.Option(help="Keys of one tenant share its turns and prefix cache.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="A model that it may use; repeatable. Default: all.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests in any 60 seconds.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Tokens of prompts and completions.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(help="The budget of each day (UTC).")] = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Choices in flight.")] = None,
    share: Annotated[int | None, typer.Option(help="Weight of its turn in the queue.")] = None,
    expires: Annotated[str | None, typer.Option(help="Last day (2027-06-30, UTC), or a time with its zone.")] = None,
    file: File = None,
    in_place: InPlace = False,
    json: Json = False,
) -> None:
    """Make a new key and print it, once."""
    if name == _RESERVED_NAME:
        raise KeysEditError(f"{name} is the name of API_KEY. Choose another.")
    plain = _new_key()
    fields: dict[str, Any] = {
        "name": name,
        "sha256": _digest(plain),
        "tenant": tenant,
        "models": model or None,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "tokens_per_day": tokens_per_day,
        "max_in_flight": max_in_flight,
        "share": share,
        "expires": expires,
    }
    try:
        key = ApiKey.model_validate(fields)
    except ValidationError as error:
        raise KeysEditError(f"The key cannot be added: {reason_of(error)}") from None
    path = _path(file)
    with editing(path, in_place=in_place) as keys:
        if any(known.name == name for known in keys):
            raise KeysEditError(f"{path} has a key {name} already. Choose another name, or rotate or revoke that one.")
        keys.append(key)
    _print_new(plain, {"name": name, "file": str(path)}, json)


@app.command("list")
def list_(file: File = None, json: Json = False) -> None:
    """List the keys with their limits."""
    keys = listed_keys(_path(file))
    now = datetime.now(timezone.utc)
    if json:
        _OUT.print_json(data=[{**_without_hashes(key), "is_valid": not key.is_expired(now)} for key in keys])
        return
    table = Table("name", "tenant", "models", "limits", "expires", box=None, header_style="bold")
    for key in keys:
        models = "all" if key.models is None else ", ".join(sorted(key.models)) or "none"
        table.add_row(key.name, key.tenant or "", models, _limits(key), _expiry(key, now))
    _OUT.print(table)


@app.command()
def revoke(name: Name, file: File = None, in_place: InPlace = False, json: Json = False) -> None:
    """Remove a key. Its running requests end within a second."""
    path = _path(file)
    with editing(path, in_place=in_place) as keys:
        keys.remove(_find(keys, name, path))
    if json:
        _OUT.print_json(data={"name": name, "file": str(path)})
    else:
        _ERR.print(f"Revoked {name}.", highlight=False, markup=False)


@app.command()
def rotate(
    name: Name,
    grace: Annotated[str, typer.Option(help="How long the old key stays valid: 30m, 24h, 7d, 0s.")] = "24h",
    file: File = None,
    in_place: InPlace = False,
    json: Json = False,
) -> None:
    """Make a new key for a name and print it, once. The old one stays valid for the grace period."""
    ends = datetime.now(timezone.utc).replace(microsecond=0) + _duration(grace)
    path, plain = _path(file), _new_key()
    with editing(path, in_place=in_place) as keys:
        old = _find(keys, name, path)
        previous = PreviousKey(sha256=old.sha256, expires=ends)
        keys[keys.index(old)] = old.model_copy(update={"sha256": _digest(plain), "previous": previous})
    _print_new(plain, {"name": name, "file": str(path), "previous_expires": ends.isoformat()}, json)


def _path(file: Path | None) -> Path:
    if file is not None:
        return file
    try:
        return StackSettings().keys_file
    except ValidationError as error:
        raise KeysEditError("\n".join(setting_problems(StackSettings, error))) from None


def _find(keys: Sequence[ApiKey], name: str, path: Path) -> ApiKey:
    for key in keys:
        if key.name == name:
            return key
    raise KeysEditError(f"{path} has no key {name}. It has: {', '.join(key.name for key in keys) or 'no keys'}.")


def _new_key() -> str:
    return f"sk-{secrets.token_urlsafe(32)}"


def _digest(plain: str) -> str:
    return hashlib.sha256(plain.encode()).hexdigest()


def _print_new(plain: str, facts: dict[str, str], json: bool) -> None:
    if json:
        _OUT.print_json(data={"key": plain, **facts})
        return
    _OUT.print(plain, highlight=False, markup=False)
    until = f" The old one is valid until {facts['previous_expires']}." if "previous_expires" in facts else ""
    message = f"The key of {facts['name']}: it is not stored, and not shown again.{until}"
    _ERR.print(message, highlight=False, markup=False)


def _duration(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise KeysEditError(f"{text} is not a duration. Write 30m, 24h, 7d or 0s.")
    return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])


def _without_hashes(key: ApiKey) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude_none=True, exclude={"sha256": True, "previous": {"sha256"}})


def _limits(key: ApiKey) -> str:
    limits = {
        "requests/min": key.requests_per_minute,
        "tokens/min": key.tokens_per_minute,
        "tokens/day": key.tokens_per_day,
        "in flight": key.max_in_flight,
        "tokens in flight": key.max_tokens_in_flight,
    }
    return ", ".join(f"{limit:,} {unit}" for unit, limit in limits.items() if limit is not None)


def _expiry(key: ApiKey, now: datetime) -> str:
    text = "" if key.ends_at is None else f"{key.ends_at:%Y-%m-%d %H:%M} UTC"
    if key.is_expired(now):
        return f"expired {text}"
    if key.previous is not None and now < key.previous.expires:
        return f"{text} (the old key: {key.previous.expires:%Y-%m-%d %H:%M} UTC)".strip()
    return text
