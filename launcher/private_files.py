"""Keeps what Triton and the front end write private to their user: logs, sockets, and Triton's shared memory.

None of them dumps its memory when it crashes. A dump contains prompts and keys, and while the kernel writes one, which
takes minutes for the tens of GB of an engine, the process looks alive to stub_monitor.py.

The regions of the Python backend in /dev/shm contain prompts. Its library creates them with mode 0644 and then calls
fchmod with the same mode, which undoes the umask. A seccomp filter answers that one call without running it, so that
the umask holds; a chmod afterwards would leave the regions open to a program that waits for them to appear.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import stat
import struct
from pathlib import Path
from typing import NamedTuple

PRIVATE_UMASK = 0o077
_OTHERS = 0o077  # mode bits of group and others
_NO_CORE_BYTES = 1  # 0 does not stop a dump that the kernel pipes into a program (fs/coredump.c)
_REGION_MODE = 0o644  # the mode of fchmod calls that are answered without an effect
_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h; filters need it without CAP_SYS_ADMIN
_SECCOMP_SET_MODE_FILTER = 1  # linux/seccomp.h
_SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4  # else kernels before 5.16 slow the process down against Spectre v4


class _Abi(NamedTuple):
    """Numbers of one processor architecture: its audit name, and two system calls."""

    architecture: int
    fchmod: int
    seccomp: int


_ABIS = {"x86_64": _Abi(0xC000003E, 91, 317), "aarch64": _Abi(0xC00000B7, 52, 277)}


def make_private_directory(path: Path) -> None:
    """Creates a directory for this user only, and takes the rights of group and others from an existing one.

    The files directly in it are treated the same. Raises OSError.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_private(path)
    for item in path.iterdir():
        make_private(item)


def make_private(path: Path) -> None:
    """Takes the rights of group and others from a file or directory. Symbolic links and devices are left alone.

    Does nothing if another user owns it, as with a mounted volume, or if the file system is read-only, as with the root
    of a container: nothing private is written there.
    """
    mode = path.lstat().st_mode
    if (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and mode & _OTHERS:
        try:
            path.chmod(stat.S_IMODE(mode) & ~_OTHERS)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EROFS):
                raise


def open_private(path: str, flags: int) -> int:
    """Opens a file that is created for this user only: an `opener` for `open`."""
    return os.open(path, flags, 0o600)


def _statement(code: int, value: int) -> bytes:
    return struct.pack("HBBI", code, 0, 0, value)


def _jump_unless_equal(value: int, count: int) -> bytes:
    return struct.pack("HBBI", 0x15, 0, count, value)  # BPF_JMP | BPF_JEQ | BPF_K


def _program(abi: _Abi) -> bytes:
    """Returns the filter: fchmod(_, 0644) returns 0 and has no effect; every other call runs."""
    load, answer = 0x20, 0x06  # BPF_LD | BPF_W | BPF_ABS, BPF_RET | BPF_K
    return b"".join(
        [
            _statement(load, 4),  # seccomp_data.arch
            _jump_unless_equal(abi.architecture, 5),
            _statement(load, 0),  # seccomp_data.nr
            _jump_unless_equal(abi.fchmod, 3),
            _statement(load, 24),  # the low half of the second argument
            _jump_unless_equal(_REGION_MODE, 1),
            _statement(answer, 0x00050000),  # SECCOMP_RET_ERRNO with errno 0: success
            _statement(answer, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        ]
    )


_abi = _ABIS.get(platform.machine())
_instructions = ctypes.create_string_buffer(_program(_abi) if _abi else b"")
# struct sock_fprog: the number of instructions and their address.
_filter = ctypes.create_string_buffer(
    struct.pack("HxxxxxxQ", (len(_instructions) - 1) // 8, ctypes.addressof(_instructions))
)


def keep_files_private() -> None:
    """Makes files and shared memory of the calling process, and of its children, private, and turns core dumps off.

    Meant for `preexec_fn`: it makes five system calls and takes no lock. On a kernel without seccomp, or another
    architecture, shared memory has the mode of its creator.
    """
    os.umask(PRIVATE_UMASK)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard:
        resource.setrlimit(resource.RLIMIT_CORE, (_NO_CORE_BYTES, hard))
    if _abi is not None:
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.syscall(_abi.seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_SPEC_ALLOW, _filter)
