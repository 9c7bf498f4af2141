"""Files and shared memory of child processes belong to their user alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.private_files import keep_files_private, make_private_directory, open_private

# Creates a file as boost::interprocess creates a region: with mode 0644, which it sets again against the umask.
REGION = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR, 0o644)
os.fchmod(descriptor, 0o644)
os.write(descriptor, b"a prompt")
"""


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def run_private(code: str, *arguments: object) -> None:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    subprocess.run(command, check=True, timeout=20, preexec_fn=keep_files_private)


def test_region_that_sets_its_own_mode_stays_private(tmp_path: Path) -> None:
    run_private(REGION, tmp_path / "region")
    assert mode_of(tmp_path / "region") == 0o600


def test_children_of_a_private_process_are_private_too(tmp_path: Path) -> None:
    run_private(
        "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]], check=True)",
        REGION,
        tmp_path / "region",
    )
    assert mode_of(tmp_path / "region") == 0o600


def test_other_modes_can_still_be_set(tmp_path: Path) -> None:
    run_private("import os, sys; os.fchmod(os.open(sys.argv[1], os.O_CREAT, 0o600), 0o640)", tmp_path / "file")
    assert mode_of(tmp_path / "file") == 0o640


def test_children_of_a_private_process_dump_no_core(tmp_path: Path) -> None:
    """A dump would contain prompts, and a process looks alive while it is written."""
    run_private(
        "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]], check=True)",
        "import resource, sys; open(sys.argv[1], 'w').write(str(resource.getrlimit(resource.RLIMIT_CORE)[0]))",
        tmp_path / "limit",
    )
    assert int((tmp_path / "limit").read_text()) in (0, 1)


def test_existing_directory_and_its_files_become_private(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir(mode=0o755)
    (folder / "triton.log").touch(mode=0o664)
    (folder / "full").symlink_to("/dev/full")
    make_private_directory(folder)
    assert (mode_of(folder), mode_of(folder / "triton.log")) == (0o700, 0o600)
    assert mode_of(Path("/dev/full")) == 0o666, "what a link points to is left alone"


def test_new_directories_and_files_are_private(tmp_path: Path) -> None:
    make_private_directory(tmp_path / "a" / "b")
    with open(tmp_path / "a" / "b" / "log", "w", opener=open_private):
        pass
    assert (mode_of(tmp_path / "a" / "b"), mode_of(tmp_path / "a" / "b" / "log")) == (0o700, 0o600)


def test_a_directory_on_a_read_only_file_system_is_left_alone(tmp_path: Path) -> None:
    """The root of a container may be one, and its image may have made the run directory with any mode."""
    (tmp_path / "run").mkdir(mode=0o755)
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"'
    namespace = ["unshare", "-m", "sh", "-c"]
    if subprocess.run([*namespace, mount, tmp_path], capture_output=True, timeout=20, check=False).returncode:
        pytest.skip("no mounts may be made here")
    code = "import sys; from pathlib import Path; from launcher.private_files import make_private_directory as make; "
    program = f"{mount} && exec {sys.executable} -c '{code} make(Path(sys.argv[1]))' \"$0/run\""
    run = subprocess.run([*namespace, program, tmp_path], capture_output=True, text=True, timeout=20, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert mode_of(tmp_path / "run") == 0o755
