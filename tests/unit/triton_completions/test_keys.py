"""`triton-completions keys`: what it writes, what it prints, and what a server makes of it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from frontend.keys.keys_editor import editing
from frontend.keys.store import ApiKeyStore
from frontend.settings import FrontendSettings
from llm_pipeline.protocol.errors import PipelineError
from tests.support.app import MODEL, in_process, until
from tests.support.keys import bearer
from triton_completions.__main__ import main

Run = Callable[..., tuple[int, str, str]]
OTHER_USER = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "api-keys.json"


@pytest.fixture
def run(path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(command: str, *options: str) -> tuple[int, str, str]:
        status = main(["keys", command, *options, "--file", str(path)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def accepts(path: Path, key: str) -> bool:
    store = ApiKeyStore(FrontendSettings(api_keys_file=path))
    try:
        store.authenticate(f"Bearer {key}".encode())
    except PipelineError:
        return False
    return True


def test_a_new_key_is_printed_once_and_only_its_hash_is_stored(run: Run, path: Path) -> None:
    status, out, err = run("add", "team", "--tokens-per-minute", "1000", "--expires", "2099-01-01")
    key = out.strip()
    assert status == 0
    assert key.startswith("sk-")
    assert len(key) > 40
    assert key not in err
    assert key not in path.read_text()
    (entry,) = json.loads(path.read_text())
    assert entry == {
        "name": "team",
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "tokens_per_minute": 1000,
        "expires": "2099-01-01",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == [path.name]
    assert accepts(path, key)


def test_json_for_scripts(run: Run, path: Path) -> None:
    made = json.loads(run("add", "team", "--json", "--tenant", "acme", "--model", "a", "--model", "b")[1])
    assert (made["name"], made["file"]) == ("team", str(path))
    (listed,) = json.loads(run("list", "--json")[1])
    assert listed == {"name": "team", "tenant": "acme", "models": ["a", "b"], "is_valid": True}
    rotated = json.loads(run("rotate", "team", "--json")[1])
    assert rotated["key"] != made["key"]
    assert rotated["previous_expires"]
    assert "sha256" not in run("list", "--json")[1]
    assert json.loads(run("revoke", "team", "--json")[1])["name"] == "team"


def test_a_rotated_key_has_a_grace(run: Run, path: Path) -> None:
    old = run("add", "team", "--requests-per-minute", "5")[1].strip()
    new = run("rotate", "team", "--grace", "1h")[1].strip()
    assert accepts(path, old)
    assert accepts(path, new)
    newest = run("rotate", "team", "--grace", "0s")[1].strip()
    assert [accepts(path, key) for key in (old, new, newest)] == [False, False, True]
    assert "5 requests/min" in run("list")[1]


def test_a_revoked_key_is_refused(run: Run, path: Path) -> None:
    old = run("add", "team")[1].strip()
    run("add", "other")
    assert run("revoke", "team")[0] == 0
    assert not accepts(path, old)
    assert [entry["name"] for entry in json.loads(path.read_text())] == ["other"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("add", "team"), "already"),
        (("add", "default"), "API_KEY"),
        (("add", "new", "--tokens-per-day", "0"), "tokens_per_day"),
        (("add", "new", "--expires", "soon"), "expires"),
        (("revoke", "tem"), "It has: team"),
        (("rotate", "tem"), "It has: team"),
        (("rotate", "team", "--grace", "a day"), "24h"),
    ],
)
def test_mistakes_change_nothing(run: Run, path: Path, options: tuple[str, ...], message: str) -> None:
    run("add", "team")
    before = path.read_bytes()
    status, out, err = run(*options)
    assert (status, out) == (1, "")
    assert message in err
    assert path.read_bytes() == before


def test_an_invalid_file_is_left_alone(run: Run, path: Path) -> None:
    path.parent.mkdir()
    path.write_text('[{"name": "a", "sha256": "sk-a-plain-key"}]')
    status, _, err = run("add", "team")
    assert status == 1
    assert "sk-a-plain-key" not in err
    assert "sk-a-plain-key" in path.read_text()


def test_an_existing_file_keeps_its_mode_and_a_link_its_target(run: Run, path: Path) -> None:
    run("add", "a")
    path.chmod(0o640)
    target = path.rename(path.with_name("target.json"))
    path.symlink_to(target)
    assert run("add", "b")[0] == 0
    assert path.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert len(json.loads(target.read_text())) == 2


def test_in_place_keeps_the_file_itself(run: Run, path: Path) -> None:
    run("add", "a")
    inode = path.stat().st_ino
    run("add", "b", "--in-place")
    assert path.stat().st_ino == inode
    run("add", "c")
    assert path.stat().st_ino != inode


@contextmanager
def without_root() -> Iterator[None]:
    """Root may write everywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(OTHER_USER)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(user)


def test_a_folder_that_cannot_be_written_is_a_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    """As a mounted Secret."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "api-keys.json").write_text("[]")
        folder.chmod(0o555)
        with without_root():
            status = main(["keys", "add", "team", "--file", str(folder / "api-keys.json")])
    printed = capsys.readouterr()
    assert (status, printed.out) == (1, "")
    assert "cannot be written here" in printed.err
    assert "docs/keys.md" in printed.err


def test_keys_that_are_added_at_once_are_all_there(path: Path) -> None:
    def add(number: int) -> int:
        return subprocess.run(
            [sys.executable, "-m", "triton_completions", "keys", "add", f"key-{number}", "--file", str(path)],
            stdout=subprocess.DEVNULL,
            timeout=60,
            check=False,
        ).returncode

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(add, range(4))) == [0] * 4
    assert sorted(entry["name"] for entry in json.loads(path.read_text())) == [f"key-{number}" for number in range(4)]


def test_an_edit_that_fails_leaves_the_file_and_no_other(path: Path) -> None:
    with editing(path) as keys:
        keys.clear()
    with pytest.raises(RuntimeError), editing(path):
        raise RuntimeError
    assert path.read_text() == "[]\n"
    assert os.listdir(path.parent) == [path.name]


async def test_a_running_server_follows_within_a_second(run: Run, path: Path) -> None:
    first = run("add", "first")[1].strip()
    async with in_process(api_keys_file=path) as app:

        async def status(key: str) -> int:
            body = {"model": MODEL, "prompt": "Hi"}
            return (await app.client.post("/v1/completions", json=body, headers=bearer(key))).status_code

        async def are(wanted: dict[str, int]) -> bool:
            return {key: await status(key) for key in wanted} == wanted

        second = run("add", "second")[1].splitlines()[-1]
        await until(lambda: are({first: 200, second: 200}), timeout_s=2)
        run("revoke", "first")
        rotated = run("rotate", "second", "--grace", "1h")[1].splitlines()[-1]  # after log lines
        await until(lambda: are({first: 401, second: 200, rotated: 200}), timeout_s=2)


def test_the_default_is_the_file_of_make_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("API_KEYS_FILE", raising=False)
    monkeypatch.setenv("RUN_DIR", str(tmp_path / "run"))
    assert main(["keys", "add", "team"]) == 0
    assert (tmp_path / "run" / "api-keys.json").exists()
    monkeypatch.setenv("API_KEYS_FILE", str(tmp_path / "own.json"))
    assert main(["keys", "list"]) == 0
    assert "team" not in capsys.readouterr().out.split("\n", 1)[1]
