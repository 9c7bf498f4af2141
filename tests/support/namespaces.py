"""Hosts of a test: network namespaces that are joined by a bridge, each with its own names, user and hostname.

They need root, iproute2 and util-linux. Processes have the id of the image's user, as in a container: that of a user
namespace, in which the owner of this process's files has it too.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_USER = 1000
_NETWORK = "10.93.0"
_LIMIT_S = 20
_counter = itertools.count()
_PASSWD = f"root:x:0:0::/root:/bin/sh\ntriton-server:x:{_USER}:{_USER}::/nonexistent:/bin/sh\n"


@dataclass(frozen=True)
class Host:
    """A network namespace. `name` is the host's name; the namespace has a name of this machine."""

    name: str
    namespace: str
    link: str  # the interface of this machine that the host is connected to

    def command(self, line: Sequence[str]) -> list[str]:
        """Returns the command line that becomes `line` on this host."""
        user = f"unshare --user --map-user={_USER} --map-group={_USER}"
        become = ["unshare", "--uts", "sh", "-c", f'hostname "$0" && exec {user} "$@"', self.name]
        return ["ip", "netns", "exec", self.namespace, *become, *line]

    def disconnect(self) -> None:
        """Loses all packets from and to the host, as if its power had failed."""
        _run("ip", "link", "set", self.link, "down")


@cache
def why_not() -> str:
    """Returns why this machine cannot have such hosts; an empty string if it can."""
    missing = [name for name in ("ip", "unshare") if shutil.which(name) is None]
    if missing:
        return f"no {' and '.join(missing)} here; Debian, Ubuntu: apt-get install iproute2 util-linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with hosts(["probe"]) as (host,):
            subprocess.run(host.command(["true"]), check=True, capture_output=True, text=True, timeout=_LIMIT_S)
    except subprocess.CalledProcessError as error:
        return f"network and user namespaces are not permitted here: {error.stderr.strip()}"
    return ""


@contextmanager
def hosts(names: Sequence[str]) -> Iterator[list[Host]]:
    """Yields hosts that reach each other by these names."""
    # Names of interfaces have at most 15 characters; those of a deleted namespace stay in use for a moment.
    prefix = f"tc{os.getpid() % 100_000}{next(_counter)}"
    bridge = f"{prefix}br"
    lines = "".join(f"{_NETWORK}.{index} {name}\n" for index, name in enumerate(names, 1))
    with ExitStack() as undo:
        _run("ip", "link", "add", bridge, "type", "bridge")
        undo.callback(_run, "ip", "link", "delete", bridge)
        _run("ip", "link", "set", bridge, "up")
        found = []
        for index, name in enumerate(names, 1):
            host = Host(name, f"{prefix}n{index}", f"{prefix}v{index}")
            _run("ip", "netns", "add", host.namespace)
            undo.callback(_run, "ip", "netns", "delete", host.namespace)
            files = Path("/etc/netns") / host.namespace  # bound over those in /etc: ip-netns(8)
            files.mkdir(parents=True)
            undo.callback(shutil.rmtree, files)
            (files / "hosts").write_text(f"127.0.0.1 localhost\n{lines}")
            (files / "passwd").write_text(_PASSWD)
            inner = ["ip", "-n", host.namespace]
            _run("ip", "link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _run("ip", "link", "set", host.link, "master", bridge, "up")
            _run(*inner, "address", "add", f"{_NETWORK}.{index}/24", "dev", "eth0")
            _run(*inner, "link", "set", "lo", "up")
            _run(*inner, "link", "set", "eth0", "up")
            found.append(host)
        yield found


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT_S)
