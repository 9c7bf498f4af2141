"""The parts of uvicorn that frontend/transport/protocol.py overrides or reads exist, and only it imports them."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

ROOT = Path(__file__).parents[2]
PROTOCOL = ROOT / "frontend" / "transport" / "protocol.py"

OVERRIDDEN = {
    "connection_made": ["transport"],
    "connection_lost": ["exc"],
    "data_received": ["data"],
    "eof_received": [],
    "on_message_begin": [],
    "on_headers_complete": [],
    "on_body": ["body"],
    "on_message_complete": [],
    "on_response_complete": [],
    "send_400_response": ["msg"],
    "_start_asgi_task": ["cycle", "app"],
}
READ = {
    HttpToolsProtocol: (
        "transport",
        "flow",
        "cycle",
        "pipeline",
        "headers",
        "parser",
        "url",
        "server_state",
        "timeout_keep_alive_task",
        "timeout_keep_alive",
        "_unset_keepalive_if_required",
    ),
    RequestResponseCycle: (
        "chunked_encoding",
        "disconnected",
        "expected_content_length",
        "keep_alive",
        "message_event",
        "more_body",
        "response_complete",
        "response_started",
        "scope",
        "waiting_for_100_continue",
    ),
    FlowControl: ("resume_reading",),
}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_methods_have_the_parameters_that_they_are_called_with(name: str) -> None:
    assert list(inspect.signature(getattr(HttpToolsProtocol, name)).parameters)[1:] == OVERRIDDEN[name]


def test_no_other_method_of_uvicorn_is_overridden() -> None:
    (protocol,) = (
        node
        for node in ast.parse(PROTOCOL.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "BoundedHttpProtocol"
    )
    defined = {node.name for node in protocol.body if isinstance(node, ast.FunctionDef)} - {"__init__"}
    assert defined & set(dir(HttpToolsProtocol)) == set(OVERRIDDEN)


@pytest.mark.parametrize(("owner", "names"), READ.items(), ids=lambda item: getattr(item, "__name__", ""))
def test_state_that_is_read_exists(owner: type, names: tuple[str, ...]) -> None:
    source = inspect.getsource(owner)
    assert [name for name in names if f"self.{name}" not in source and not hasattr(owner, name)] == []


def test_only_one_module_imports_the_protocols_of_uvicorn() -> None:
    importing = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "frontend").rglob("*.py")
        if "uvicorn.protocols" in path.read_text(encoding="utf-8")
    ]
    assert importing == [PROTOCOL.relative_to(ROOT).as_posix()]
