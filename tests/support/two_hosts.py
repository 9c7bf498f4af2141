"""What tests of ranks on two hosts need: programs, keys, and the names that LeaderWorkerSet gives to a group's pods."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support import namespaces
from tests.support.waiting import DEADLINE_S

SSHD = Path("/usr/sbin/sshd")
NAMES = ("demo-0.demo.ns", "demo-0-1.demo.ns")
GROUP = {"LWS_LEADER_ADDRESS": NAMES[0], "LWS_GROUP_SIZE": "2"}


def reason_to_skip() -> str:
    """Why ranks cannot run on two hosts here; an empty string if they can."""
    programs = {"mpirun": shutil.which("mpirun"), "ssh": shutil.which("ssh"), "sshd": SSHD.exists()}
    if missing := [name for name, found in programs.items() if not found]:
        packages = "openmpi-bin openssh-client openssh-server"
        return f"no {' and '.join(missing)} here; Debian, Ubuntu: apt-get install {packages}"
    return namespaces.why_not()


def write_keys(folder: Path) -> Path:
    """Writes the files of the group's Secret, by the commands of docs/gateway.md, and the key of a stranger."""
    for name in ("client", "host", "stranger"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True, timeout=DEADLINE_S)
    (folder / "known_hosts").write_text(f"* {(folder / 'host.pub').read_text()}")
    return folder
