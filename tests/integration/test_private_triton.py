"""What other users of the machine can reach of a stack that serves: none of its files, and of Triton only inference."""

from __future__ import annotations

import http.client
import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from frontend.backends.grpc_channel import TritonChannel
from frontend.backends.triton import TritonGenerator
from launcher.gpu.launch import LaunchSettings, command
from launcher.local import triton_wheel
from launcher.local.processes import ChildProcess
from launcher.ports import free_ports
from launcher.settings import StackSettings
from launcher.triton_access import MANAGEMENT_APIS
from llm_pipeline.protocol.errors import PipelineError
from llm_pipeline.protocol.messages import CompletionParameters
from llm_pipeline.runtime.process_tree import command_line
from tests.support.app import completed
from tests.support.load import completes
from tests.support.stack import RunningStack, running_stack
from tests.support.waiting import wait_until

pytestmark = pytest.mark.triton

# One request for each management API, over HTTP, and its counterpart over gRPC.
HTTP_REQUESTS = {
    "shared-memory": ("GET", "/v2/systemsharedmemory/status"),
    "model-repository": ("POST", "/v2/repository/index"),
    "trace": ("GET", "/v2/trace/setting"),
    "logging": ("GET", "/v2/logging"),
    "statistics": ("GET", "/v2/models/ensemble/stats"),
    "model-config": ("GET", "/v2/models/ensemble/config"),
}
GRPC_METHODS = {
    "shared-memory": "SystemSharedMemoryStatus",
    "model-repository": "RepositoryIndex",
    "trace": "TraceSetting",
    "logging": "LogSettings",
    "statistics": "ModelStatistics",
    "model-config": "ModelConfig",
}


@pytest.fixture(scope="module")
def private_stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("private")
    with running_stack(folder, engine_dir, EXECUTOR="scripted", TRITON_INFERENCE="private") as stack:
        yield stack


def readable_by_others(folder: Path) -> list[str]:
    """The files below a folder that group or others may read, whatever the folder's own mode is."""
    paths = [path for path in folder.rglob("*") if not path.is_symlink()]
    return [str(path) for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077]


def regions_of(stack: RunningStack) -> list[Path]:
    """The shared memory of a stack's Triton."""
    assert stack.triton.pid is not None
    marker = "shm-region-prefix-name="
    (prefix,) = (part.split(marker)[1] for part in command_line(stack.triton.pid) if marker in part)
    return list(Path("/dev/shm").glob(f"{prefix}*"))


def test_logs_and_shared_memory_are_private_while_a_stack_serves(scripted_stack: RunningStack) -> None:
    assert completes(scripted_stack)
    assert readable_by_others(scripted_stack.stack.log_dir) == []
    regions = regions_of(scripted_stack)
    assert len(regions) >= 3, "one for each stub"
    assert {stat.S_IMODE(region.stat().st_mode) for region in regions} == {0o600}


def test_loose_directories_of_an_earlier_start_are_made_private(engine_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o755)
    with running_stack(run_dir, engine_dir, EXECUTOR="scripted") as stack:
        assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE(stack.stack.log_dir.stat().st_mode) == 0o700


def test_triton_listens_on_loopback_only(scripted_stack: RunningStack) -> None:
    assert scripted_stack.triton.pid is not None
    connections = psutil.Process(scripted_stack.triton.pid).net_connections(kind="inet")
    listening = {item.laddr.ip for item in connections if item.status == psutil.CONN_LISTEN}
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert len([item for item in connections if item.status == psutil.CONN_LISTEN]) == 3


# --- The management APIs ---------------------------------------------------------------------------------------------


def closing_header(stack: RunningStack, option: str) -> tuple[str, str]:
    """Name and value of the header that a closed API expects, as any user of the machine can read them."""
    assert stack.triton.pid is not None
    (argument,) = (part for part in command_line(stack.triton.pid) if part.startswith(f"--{option}="))
    name, _, value = argument.partition(":")[2].partition("=")
    return name, value


def http_status(stack: RunningStack, method: str, path: str, header: str = "") -> int | None:
    """The status of a raw HTTP request; None if Triton closes the connection instead."""
    host, port = stack.triton_http_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n{header}Connection: close\r\n\r\n"
        connection.sendall(head.encode())
        answer = http.client.HTTPResponse(connection)
        try:
            answer.begin()
        except (http.client.HTTPException, ConnectionError):
            return None
        return answer.status


@pytest.mark.parametrize("api", MANAGEMENT_APIS)
def test_management_api_is_closed_over_http_whatever_header_is_sent(scripted_stack: RunningStack, api: str) -> None:
    name, value = closing_header(scripted_stack, "http-restricted-api")
    first, last = value.split("\n")
    assert http_status(scripted_stack, *HTTP_REQUESTS[api]) == 403
    for sent in (value, f"{first}\r\n {last}", f"{first}\r\n\t{last}", f"{first}\\n{last}", first + last):
        assert http_status(scripted_stack, *HTTP_REQUESTS[api], f"{name}: {sent}\r\n") in (403, 400, None)


OTHER_SPELLINGS = [
    "//v2/logging",
    "/v2//logging",
    "/v2/./logging",
    "/v2/x/../logging",
    "/V2/logging",
    "/v2/loggin%67",
    "/v2%2Flogging",
    "/v2/logging/",
    "/v2/logging?a=b",
    "/v2/logging#a",
    "/v2/logging;a",
    "http://x/v2/logging",
]


@pytest.mark.parametrize("path", OTHER_SPELLINGS)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_other_spelling_of_a_path_does_not_open_an_api(scripted_stack: RunningStack, path: str, method: str) -> None:
    assert http_status(scripted_stack, method, path) in (400, 403, 404, 405, None)


@pytest.mark.parametrize("api", MANAGEMENT_APIS)
def test_management_api_is_closed_over_grpc_whatever_header_is_sent(scripted_stack: RunningStack, api: str) -> None:
    name, value = closing_header(scripted_stack, "grpc-restricted-protocol")
    for sent in (name, name.lower()):
        answer = raw_grpc_call(scripted_stack, GRPC_METHODS[api], f"triton-grpc-protocol-{sent}", value)
        assert grpc_status(answer) not in (None, 0), answer


def test_raw_call_of_an_open_api_succeeds(scripted_stack: RunningStack) -> None:
    """Shows that the calls above fail because of the restriction."""
    assert grpc_status(raw_grpc_call(scripted_stack, "ServerLive", "x", "y")) == 0


def raw_grpc_call(stack: RunningStack, method: str, name: str, value: str) -> bytes:
    """Calls a method with an empty message and any bytes as a header, which gRPC's own clients would refuse to send."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/inference.GRPCInferenceService/{method}",
        ":authority": "x",
        "content-type": "application/grpc",
        "te": "trailers",
        name: value,
    }
    block = b"".join(b"\0" + _string(key) + _string(text) for key, text in headers.items())
    settings, end_headers, end_stream = _frame(4, 0, 0, b""), 4, 1
    call = _frame(1, end_headers, 1, block) + _frame(0, end_stream, 1, bytes(5))
    host, port = stack.triton_grpc_url.split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + call)
        while b"grpc-status" not in answer and (part := connection.recv(65536)):
            answer += part
        connection.settimeout(0.2)
        with suppress(TimeoutError):
            answer += connection.recv(65536)
    return answer


def grpc_status(answer: bytes) -> int | None:
    """The status in the trailers, which this server writes as plain text after one byte of length."""
    _, found, rest = answer.partition(b"grpc-status")
    return int(rest[1 : 1 + rest[0]]) if found else None


def _string(text: str) -> bytes:
    data = text.encode()
    assert len(data) < 127
    return bytes([len(data)]) + data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


# --- Private inference -----------------------------------------------------------------------------------------------


def test_private_stack_serves_over_sockets_that_only_its_user_can_open(private_stack: RunningStack) -> None:
    assert completes(private_stack)
    assert private_stack.triton.pid is not None
    server = psutil.Process(private_stack.triton.pid)
    listening = [item.laddr for item in server.net_connections(kind="inet") if item.status == psutil.CONN_LISTEN]
    assert [str(address.port) for address in listening] == [private_stack.triton_metrics_url.rsplit(":", 1)[1]]
    folder = private_stack.stack.settings.triton_addresses.socket_dir
    assert folder is not None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert readable_by_others(folder) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run a program as another user")
def test_another_user_cannot_use_a_private_triton(private_stack: RunningStack) -> None:
    folder = private_stack.stack.settings.triton_addresses.socket_dir
    assert folder is not None
    code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    line = ["python3", "-c", code, str(folder / "http")]
    assert subprocess.run(line, check=False, timeout=20).returncode == 0
    stranger = subprocess.run(line, check=False, timeout=20, user=65534, group=65534, capture_output=True, text=True)
    assert "PermissionError" in stranger.stderr


def test_private_triton_is_restarted_and_serves_again(private_stack: RunningStack) -> None:
    """The next server replaces the sockets that a killed one leaves."""
    pid = private_stack.triton.pid
    private_stack.triton.kill()
    wait_until(lambda: private_stack.triton.pid != pid and completes(private_stack), limit_s=60, what="an answer")
    assert "already in use" not in private_stack.triton.log_path.read_text()


# --- A secret for inference ------------------------------------------------------------------------------------------

SECRET = "0123456789abcdef-only-for-tests"


@pytest.fixture(scope="module")
def triton_with_secret(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """The HTTP and gRPC ports of a server as the GPU launcher runs it with TRITON_SECRET."""
    folder = tmp_path_factory.mktemp("secret")
    http_port, grpc_port, metrics_port = free_ports(3)
    stack = StackSettings(executor="scripted")
    settings = LaunchSettings(
        engine_dir=engine_dir,
        tritonserver=triton_wheel.find_server_root() / "bin" / "tritonserver",
        triton_backends=triton_wheel.prepare_backends(folder),
        triton_http_port=http_port,
        triton_grpc_port=grpc_port,
        triton_metrics_port=metrics_port,
        triton_secret=SecretStr(SECRET),
    )
    line = command(settings, "single", 1)
    environment = triton_wheel.environment(stack, engine_dir)
    server = ChildProcess("Triton", line, environment, folder / "triton.log", stop_timeout_s=20)
    server.start()
    try:
        wait_until(lambda: healthcheck(http_port) == 0, limit_s=60, what="Triton is ready")
        yield http_port, grpc_port
    finally:
        server.stop()


def healthcheck(http_port: int, *ensembles: str, secret: str = "") -> int:
    """The exit status of the images' health check."""
    script = Path(__file__).parents[2] / "docker" / "healthcheck.py"
    line = [sys.executable, str(script), "NO_SUCH_SETTING", str(http_port), "/v2/health/ready", *ensembles]
    return subprocess.run(line, check=False, timeout=30, env={"TRITON_SECRET": secret}, capture_output=True).returncode


async def test_inference_needs_the_secret(triton_with_secret: tuple[int, int]) -> None:
    _, grpc_port = triton_with_secret
    parameters = CompletionParameters("key", "id", prompt_text="Hello", max_tokens=3, stream=True)
    for secret, is_allowed in ((SECRET, True), (None, False), ("another-secret-of-a-test", False)):
        generator = TritonGenerator(TritonChannel(f"127.0.0.1:{grpc_port}", secret=secret), "ensemble")
        try:
            assert await generator.is_ready()
            if is_allowed:
                assert await completed(generator, parameters)
                await generator.get_model_info()
            else:
                with pytest.raises(PipelineError):
                    await completed(generator, parameters)
        finally:
            await generator.close()


def test_health_check_asks_the_stages_with_the_secret(triton_with_secret: tuple[int, int]) -> None:
    http_port, _ = triton_with_secret
    assert healthcheck(http_port, "ensemble", secret=SECRET) == 0
    assert healthcheck(http_port, "ensemble") == 1
