"""Hashing and copying of several files at a time."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_engine.artifact.hashing import copy_files, hash_files
from llm_pipeline.engine_files.manifest import EngineFile
from tests.support.small_disk import file_size_limit

MIB = 1 << 20


class Total:
    """Adds up the bytes that threads report."""

    def __init__(self) -> None:
        self.bytes = 0
        self._lock = threading.Lock()

    def __call__(self, amount: int) -> None:
        with self._lock:
            self.bytes += amount


def write(directory: Path, contents: list[bytes]) -> dict[str, Path]:
    paths = {f"file-{number}": directory / str(number) for number in range(len(contents))}
    for path, content in zip(paths.values(), contents, strict=True):
        path.write_bytes(content)
    return paths


@given(contents=st.lists(st.binary(max_size=200), max_size=9))
def test_copies_are_equal_and_their_digests_are_those_of_the_files(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]
) -> None:
    directory, total = tmp_path_factory.mktemp("files"), Total()
    paths, copies = write(directory, contents), directory / "copies"
    copies.mkdir()
    expected = {
        name: EngineFile(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        for name, content in zip(paths, contents, strict=True)
    }
    assert hash_files(paths, total) == expected
    assert copy_files(paths, copies, total) == expected
    assert {path.name: path.read_bytes() for path in copies.iterdir()} == dict(zip(paths, contents, strict=True))
    assert total.bytes == 2 * sum(map(len, contents))


def test_a_large_file_is_read_in_parts(tmp_path: Path) -> None:
    amounts: list[int] = []
    hash_files(write(tmp_path, [bytes(20 * MIB)]), amounts.append)
    assert sum(amounts) == 20 * MIB
    assert len(amounts) > 1


def test_a_missing_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    paths = write(tmp_path, [b"a", b"b"]) | {"gone": tmp_path / "gone"}
    with pytest.raises(FileNotFoundError) as error:
        hash_files(paths, lambda amount: None)
    assert error.value.filename == str(tmp_path / "gone")


def test_an_error_in_one_file_ends_the_others(tmp_path: Path) -> None:
    """The large file, which takes no room on the disk, would be read for seconds."""
    paths = write(tmp_path, [b"small", b""])
    os.truncate(paths["file-1"], 4096 * MIB)
    large_has_begun, total = threading.Event(), Total()

    def advance(amount: int) -> None:
        if amount == len(b"small"):
            assert large_has_begun.wait(30)
            raise ConnectionError("advance failed")
        total(amount)
        large_has_begun.set()

    with pytest.raises(ConnectionError):
        hash_files(paths, advance)
    assert total.bytes < 4096 * MIB


def test_a_disk_that_fills_up_is_an_error(tmp_path: Path) -> None:
    paths = write(tmp_path, [bytes(3 * MIB), bytes(10)])
    copies = tmp_path / "copies"
    copies.mkdir()
    with file_size_limit(MIB), pytest.raises(OSError, match="File too large"):
        copy_files(paths, copies, lambda amount: None)
