"""Files that are taken for a model: the message says what the file is, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from build_engine.artifact.file_kinds import describe_failed_download, describe_other_file
from build_engine.artifact.model_directory import read_json_object
from build_engine.cpu.gguf.gguf_model import GgufModel
from build_engine.cpu.hugging_face.safetensors_files import list_tensors
from build_engine.errors import EngineRefusedError
from tests.support.tiny_models import TinyModel, write_gguf

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 98362432\n"
PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><head><title>Sign in</title>"
SAFETENSORS = b'\x02\x00\x00\x00\x00\x00\x00\x00{"'


@pytest.mark.parametrize(
    ("content", "kind", "remedy"),
    [
        (LFS, "is a pointer of Git LFS", "git lfs pull"),
        (PAGE, "is a web page", "/resolve/"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "is a web page", "Download the file itself"),
        (b"", "is empty", "Download it again"),
        (b'{"error": "Repository not found"}', "is JSON text", "Download the file itself"),
        (b"PK\x03\x04rest", "is a zip archive", "safetensors"),
        (b"\x1f\x8brest", "is an archive", "Unpack it"),
        (b"tjgg\x03\x00\x00\x00", "older than GGUF", "Download a GGUF file"),
        (SAFETENSORS, "is a safetensors file", "the directory that contains it"),
        (b"\x80\x02ccollections", "is not a GGUF file", "convert the model to GGUF"),
        (b"GGUF\x01\x00\x00\x00" + bytes(64), "version 1, of August 2023", "convert the original model again"),
        (b"GGUF\x00\x00\x00\x01" + bytes(64), "version 1, of August 2023", "convert the original model again"),
        (b"GGUF\x09\x00\x00\x00" + bytes(64), "version 9; this program reads up to 3", "Update it"),
        (b"GGU", "is not a GGUF file", "Download it again"),
        (b"GGUF", "is truncated or damaged", "Download it again"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value)[:20],
)
def test_file_that_is_not_a_readable_gguf_model(tmp_path: Path, content: bytes, kind: str, remedy: str) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(EngineRefusedError) as caught:
        GgufModel(tmp_path / "model.gguf")
    message = str(caught.value)
    assert message.startswith("model.gguf ")
    assert kind in message
    assert remedy in message


@pytest.mark.parametrize(("content", "kind"), [(LFS, "is a pointer of Git LFS"), (PAGE, "is a web page")])
def test_part_of_a_model_directory_that_was_not_downloaded(tmp_path: Path, content: bytes, kind: str) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(EngineRefusedError, match=f"model.safetensors {kind}"):
        list_tensors(tmp_path)
    with pytest.raises(EngineRefusedError, match=f"config.json {kind}"):
        read_json_object(tmp_path / "config.json")


def test_damaged_json_is_no_failed_download(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"a": 1})[:-1])
    assert describe_failed_download(tmp_path / "config.json") is None
    with pytest.raises(EngineRefusedError, match="is not valid JSON"):
        read_json_object(tmp_path / "config.json")


def test_models_are_not_described(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", TinyModel())
    assert describe_other_file(tmp_path / "model.gguf") is None
