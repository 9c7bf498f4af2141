"""Several hosts of one engine: which they are, how mpirun reaches them, and that they are reachable.

The hosts are listed in MPIRUN_HOSTS, or those of a group of Kubernetes' LeaderWorkerSet, which sets LWS_LEADER_ADDRESS
(POD.SERVICE.NAMESPACE) and LWS_GROUP_SIZE in all of its pods, and names the others POD-1, POD-2, ...
(kubernetes-sigs/lws, pkg/utils/pod/pod_utils.go at 060ab4da). worker.py runs on the others.
"""

from __future__ import annotations

import re
import resource
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from launcher.gpu.served_engine import LaunchError
from llm_pipeline.runtime.program_settings import ProgramSettings

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BANNER = b"SSH-"
_TRY_S = 5.0  # for one connection and its banner
_RETRY_PERIOD_S = 0.5
# A host that no longer answers is given up 5 + 3 x 3 s after its last packet; Open MPI's own values make that 480 s.
_KEEPALIVE = {"oob_tcp_keepalive_time": "5", "oob_tcp_keepalive_intvl": "3", "oob_tcp_keepalive_probes": "3"}


def _split_hosts(value: object) -> object:
    return tuple(host.strip() for host in value.split(",")) if isinstance(value, str) else value


def _check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ValueError(f"{host!r} is not the name or the IPv4 address of a host")
    if len(set(hosts)) != len(hosts):
        raise ValueError("A host is listed twice")
    return hosts


class HostSettings(ProgramSettings):
    """Which hosts there are, and ssh between them."""

    mpirun_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_hosts), AfterValidator(_check_hosts)] = (
        Field(
            (),
            description="Hosts that share the ranks equally, comma separated, this one first. Unset: the group of "
            "LWS_GROUP_SIZE, or this host alone",
        )
    )
    mpirun_hosts_timeout_s: float = Field(600, gt=0, description="Seconds to wait until the other hosts accept ssh")
    ssh_port: int = Field(2222, ge=1024, le=65535, description="Port of sshd on the other hosts")
    ssh_keys: Path = Field(
        Path("/run/secrets/ssh"),
        description="Directory of ssh keys: client and known_hosts on the first host, host and client.pub elsewhere",
    )
    lws_leader_address: str | None = Field(
        None, description="Set by LeaderWorkerSet: the group's first pod, as POD.SERVICE.NAMESPACE"
    )
    lws_group_size: int = Field(1, ge=1, description="Set by LeaderWorkerSet: number of pods in the group")


def hosts_of(settings: HostSettings) -> tuple[str, ...]:
    """Returns the hosts, this one first; an empty tuple if it is alone. Raises LaunchError if the group is unknown."""
    if settings.mpirun_hosts or settings.lws_group_size == 1:
        return settings.mpirun_hosts if len(settings.mpirun_hosts) > 1 else ()
    if settings.lws_leader_address is None:
        raise LaunchError("LWS_GROUP_SIZE is set, and LWS_LEADER_ADDRESS is not. LeaderWorkerSet sets both.")
    pod, _, domain = settings.lws_leader_address.partition(".")
    workers = (f"{pod}-{index}" for index in range(1, settings.lws_group_size))
    return (settings.lws_leader_address, *(f"{worker}.{domain}" if domain else worker for worker in workers))


def ssh_options(settings: HostSettings) -> list[str]:
    """Returns mpirun's options for hosts that are reached by ssh. It splits the agent at spaces, so no path has one."""
    keys = settings.ssh_keys
    if " " in str(keys):
        raise LaunchError(f"SSH_KEYS: {keys} has a space, at which mpirun would split the path.")
    agent = ["ssh", "-F", "none", "-p", str(settings.ssh_port), "-i", str(keys / "client")]
    for option in (
        f"UserKnownHostsFile={keys / 'known_hosts'}",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
        "BatchMode=yes",
        "ConnectTimeout=10",
        "LogLevel=ERROR",
    ):
        agent += ["-o", option]
    parameters = {
        "plm_rsh_agent": " ".join(agent),
        "plm_rsh_no_tree_spawn": "1",  # else the others start each other, and need the client's key
        "orte_keep_fqdn_hostnames": "1",  # POD-1 alone has no address
        **_KEEPALIVE,
    }
    return [part for name, value in parameters.items() for part in ("--mca", name, value)]


def await_hosts(hosts: Sequence[str], settings: HostSettings) -> None:
    """Returns when all hosts accept ssh. Raises LaunchError with those that do not within MPIRUN_HOSTS_TIMEOUT_S."""
    deadline = time.monotonic() + settings.mpirun_hosts_timeout_s
    waiting = list(hosts)
    while True:
        waiting = [host for host in waiting if not _has_sshd(host, settings.ssh_port)]
        if not waiting:
            return
        if time.monotonic() > deadline:
            raise LaunchError(
                f"No sshd on port {settings.ssh_port} of {', '.join(waiting)} within "
                f"{settings.mpirun_hosts_timeout_s:g} s. Run python -m launcher.gpu --worker there."
            )
        time.sleep(_RETRY_PERIOD_S)


def memlock_warning() -> str:
    """Returns a line if the memory that this process may lock is limited; otherwise an empty string."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return ""
    return (
        f"Processes may lock {limit // 1024} KiB of memory here. RDMA between hosts locks what it sends: raise the "
        "container runtime's limit (memlock), or NCCL may fail or fall back to TCP.\n"
    )


def _has_sshd(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=_TRY_S) as connection:
        return connection.recv(len(_BANNER)) == _BANNER
    return False
