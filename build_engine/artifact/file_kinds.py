"""Recognises files that are often taken for a model file: what a download saves in its place, and older formats."""

from __future__ import annotations

from pathlib import Path

_HEAD_BYTES = 512
_RESOLVE = "On Hugging Face, that is the link with /resolve/, not the one with /blob/."
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")
_OLDER_FORMATS = (b"lmgg", b"fmgg", b"tjgg", b"algg")  # ggml, ggmf, ggjt, ggla as little-endian numbers


def describe_failed_download(path: Path) -> str | None:
    """Returns what a download has saved in place of any file; None if it looks like a file of its own kind.

    The text is about the file, and has the remedy: "is a web page, not a model. Download the file itself."
    """
    head = _head(path)
    if not head:
        return "is empty. Download it again."
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return (
            "is a pointer of Git LFS, a few lines of text in place of the file. Fetch the file with `git lfs install` "
            "and `git lfs pull` in its repository, or download it from there by other means."
        )
    if _text(head).startswith(_PAGES):
        return f"is a web page, not a part of a model. Download the file itself. {_RESOLVE}"
    return None


def describe_other_file(path: Path) -> str | None:
    """Returns what a file is that was taken for a GGUF file; None if it is unknown."""
    if found := describe_failed_download(path):
        return found
    head = _head(path)
    if _text(head).startswith((b"{", b"[")):
        return f"is JSON text, such as a server's error message, not a model. Download the file itself. {_RESOLVE}"
    if head.startswith(b"PK\x03\x04"):
        return "is a zip archive, such as a PyTorch checkpoint. Unpack it, or save the model in safetensors format."
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        return "is an archive. Unpack it first."
    if head.startswith(_OLDER_FORMATS):
        return "is in a format older than GGUF, of 2023. Download a GGUF file, or convert the original model again."
    if head[8:10] == b'{"':
        return "is a safetensors file. Give the directory that contains it, with config.json and tokenizer.json."
    return None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _text(head: bytes) -> bytes:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
