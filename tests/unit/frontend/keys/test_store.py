"""The keys file while it changes: what is valid after which check, and what prevents the start."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.keys.keys_file import KeysFileError
from frontend.keys.store import ApiKeyStore
from frontend.settings import FrontendSettings
from llm_pipeline.protocol.errors import ErrorCode, PipelineError
from tests.support.app import until
from tests.support.clock import Clock
from tests.support.keys import digest_of, write_keys

GRACE_S = 60.0


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_keys(tmp_path / "keys", {"name": "a"}, {"name": "b"})


@pytest.fixture
def store(path: Path, clock: Clock) -> ApiKeyStore:
    return ApiKeyStore(FrontendSettings(api_key="fixed", api_keys_file=path, api_keys_grace_s=GRACE_S), clock=clock)


def accepted(store: ApiKeyStore) -> str:
    """The keys of a, b, c and fixed that are valid."""
    return " ".join(name for name in ("a", "b", "c", "fixed") if is_accepted(store, name))


def is_accepted(store: ApiKeyStore, key: str) -> bool:
    try:
        store.authenticate(f"Bearer {key}".encode())
    except PipelineError as error:
        return error.code is not ErrorCode.INVALID_API_KEY
    return True


def test_keys_that_leave_or_enter_the_file(store: ApiKeyStore, path: Path) -> None:
    write_keys(path, {"name": "b"}, {"name": "c"})
    store.check()
    assert accepted(store) == "b c fixed"


def test_key_of_a_running_request_is_valid_until_it_leaves_the_file(store: ApiKeyStore, path: Path) -> None:
    key = store.authenticate(b"Bearer a")
    assert store.is_valid(key)
    write_keys(path, {"name": "renamed", "sha256": digest_of("a"), "max_in_flight": 1})
    store.check()
    assert store.is_valid(key)
    write_keys(path, {"name": "a", "sha256": digest_of("another")})
    store.check()
    assert not store.is_valid(key)
    with pytest.raises(PipelineError, match="revoked"):
        store.require_valid(key)


def test_key_expires_while_its_request_runs(store: ApiKeyStore, path: Path) -> None:
    key = store.authenticate(b"Bearer a")
    past = datetime.now(timezone.utc) - timedelta(seconds=1)
    write_keys(path, {"name": "a", "expires": past.isoformat()})
    store.check()
    assert not store.is_valid(key)


def test_missing_file_revokes_its_keys_in_the_second_check(store: ApiKeyStore, path: Path) -> None:
    path.unlink()
    store.check()
    assert accepted(store) == "a b fixed"  # a program may just be replacing the file
    store.check()
    assert accepted(store) == "fixed"
    write_keys(path, {"name": "b"})
    store.check()
    assert accepted(store) == "b fixed"


def test_file_that_is_removed_and_written_again_revokes_nothing(store: ApiKeyStore, path: Path) -> None:
    for _ in range(3):
        path.unlink()
        store.check()
        write_keys(path, {"name": "a"}, {"name": "b"})
        store.check()
        assert accepted(store) == "a b fixed"


@pytest.mark.parametrize("content", ["", "[{", "{}", '[{"name": "a"}]', "\udcff"])
def test_invalid_file_keeps_the_previous_keys_for_the_grace(
    store: ApiKeyStore, path: Path, clock: Clock, content: str
) -> None:
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    store.check()
    clock.now_s += GRACE_S
    store.check()
    assert accepted(store) == "a b fixed"
    clock.now_s += 0.1
    store.check()
    assert accepted(store) == "fixed"
    write_keys(path, {"name": "a"})
    store.check()
    assert accepted(store) == "a fixed"


def test_grace_begins_with_the_last_check_that_succeeded(store: ApiKeyStore, path: Path, clock: Clock) -> None:
    clock.now_s += 10 * GRACE_S
    store.check()
    path.write_text("[{")
    store.check()
    assert accepted(store) == "a b fixed"


def test_file_that_others_may_write_is_not_read(store: ApiKeyStore, path: Path) -> None:
    write_keys(path, {"name": "c"}).chmod(0o620)
    store.check()
    assert accepted(store) == "a b fixed"
    path.chmod(0o600)
    store.check()
    assert accepted(store) == "c fixed"


@given(st.lists(st.sampled_from(["remove", "break", "write a", "write b", "write a b"]), max_size=12))
def test_valid_keys_are_those_of_the_last_readable_file(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    path = write_keys(tmp_path_factory.mktemp("keys") / "keys", {"name": "a"}, {"name": "b"})
    store = ApiKeyStore(FrontendSettings(api_key="fixed", api_keys_file=path), clock=Clock(1000.0))
    expected, missing = "a b", 0
    for step in steps:
        if step == "remove":
            path.unlink(missing_ok=True)
            missing += 1
        else:
            missing = 0
            if step == "break":
                path.write_text("[{")
            else:
                expected = step.removeprefix("write ")
                write_keys(path, *({"name": name} for name in expected.split()))
        if missing > 1:
            expected = ""
        store.check()
        assert accepted(store) == f"{expected} fixed".strip()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        '[{"name": "a", "sha256": "plain"}]',
        '[{"name": "a"}]',
        json.dumps([{"name": "a", "sha256": digest_of("a")}] * 2),
        json.dumps([{"name": "a", "sha256": digest_of("a"), "rpm": 1}]),
        json.dumps([{"name": "a", "sha256": digest_of("a"), "share": 101}]),
        json.dumps([{"name": "a", "sha256": digest_of("a"), "max_in_flight": 0}]),
    ],
)
def test_invalid_keys_file_prevents_the_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(KeysFileError, match="API_KEYS_FILE"):
        ApiKeyStore(FrontendSettings(api_keys_file=path))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_keys_file_that_others_may_write_prevents_the_start(path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(KeysFileError) as caught:
        ApiKeyStore(FrontendSettings(api_keys_file=path))
    for part in (str(path), f"{mode:04o}", f"chmod go-w {path}"):
        assert part in str(caught.value)


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o444, 0o644])
def test_keys_file_of_a_mounted_secret_is_accepted(path: Path, mode: int) -> None:
    """Kubernetes mounts secrets with 0644, or 0440 for a group. The file has only hashes, which give no access."""
    path.chmod(mode)
    assert accepted(ApiKeyStore(FrontendSettings(api_keys_file=path))) == "a b"


def test_secret_that_kubernetes_replaces_is_read_again(tmp_path: Path) -> None:
    """The file is a link through `..data`, which is renamed over the old one."""
    for version, names in enumerate(["ab", "b"]):
        folder = tmp_path / f"version{version}"
        folder.mkdir()
        write_keys(folder / "keys", *({"name": name} for name in names))
    (tmp_path / "..data").symlink_to("version0")
    (tmp_path / "keys").symlink_to("..data/keys")
    store = ApiKeyStore(FrontendSettings(api_keys_file=tmp_path / "keys"))
    (tmp_path / "..tmp").symlink_to("version1")
    os.replace(tmp_path / "..tmp", tmp_path / "..data")
    store.check()
    assert accepted(store) == "b"


async def test_watch_goes_on_after_a_check_that_failed(store: ApiKeyStore, path: Path) -> None:
    calls = 0

    def fail_once() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError

    watch = asyncio.create_task(store.watch(fail_once))
    await until(lambda: calls == 2)
    write_keys(path, {"name": "c"})
    await until(lambda: accepted(store) == "c fixed")
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch


def test_of_several_keys_only_one_with_a_best_priority_of_its_own_goes_first(path: Path) -> None:
    write_keys(path, {"name": "a"}, {"name": "b", "best_priority": -5})
    store = ApiKeyStore(FrontendSettings(api_keys_file=path))
    assert best_priorities(store, "a", "b") == [0, -5]


def test_a_single_key_may_use_any_priority(path: Path) -> None:
    write_keys(path, {"name": "a"})
    assert best_priorities(ApiKeyStore(FrontendSettings(api_keys_file=path)), "a") == [None]


def best_priorities(store: ApiKeyStore, *names: str) -> list[int | None]:
    keys = [store.authenticate(f"Bearer {name}".encode()) for name in names]
    return [None if key is None else key.best_priority for key in keys]
