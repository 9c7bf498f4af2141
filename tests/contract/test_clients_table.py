"""The README's table of clients has the versions of the lock files, and each row has its test."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = {
    "openai": "test_openai_python",
    "langchain-openai": "test_langchain_openai",
    "litellm": "test_litellm",
    "llama-index-llms-openai-like": "test_llama_index_openai_like",
    "lm-eval": "test_lm_eval",
    "guidellm": "test_guidellm",
    "aiperf": "test_aiperf",
    "tritonclient": "test_tritonclient",
    "pydantic-ai-slim": "test_pydantic_ai",
    "instructor": "test_instructor",
    "openai-node": "test_openai_node",
    "ai": "test_ai_sdk",
    "JDK HttpClient": "test_jdk_http_client",
    "curl": "test_curl",
    "vllm bench serve": "test_vllm_bench_serve_shape",
}
NODE_PACKAGES = {"openai-node": ("openai",), "ai": ("ai", "@ai-sdk/openai-compatible")}
ANY_VERSION = {"JDK HttpClient", "curl"}


def table() -> dict[str, str]:
    """Version by client."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Clients\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in section.splitlines() if line.startswith("| ")]
    return {name.split(" (")[0].strip("`"): version for name, version in rows[2:]}


def pinned(lock: str, package: str) -> list[str]:
    text = (ROOT / "requirements" / lock).read_text(encoding="utf-8")
    return re.findall(rf"^{re.escape(package)}==(\S+)", text, re.MULTILINE)


def test_each_client_of_the_table_has_its_test() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "clients").glob("test_*.py"))
    assert set(table()) == set(TESTS)
    assert [name for name in TESTS.values() if f"def {name}(" not in code] == []


@pytest.mark.parametrize("package", sorted(set(TESTS) - {*ANY_VERSION, *NODE_PACKAGES, "openai", "vllm bench serve"}))
def test_the_version_in_the_table_is_the_one_that_is_tested(package: str) -> None:
    assert pinned("clients.lock", package) == [table()[package]]


@pytest.mark.parametrize("name", sorted(NODE_PACKAGES))
def test_the_versions_of_javascript_packages_are_those_that_are_tested(name: str) -> None:
    lock = json.loads((ROOT / "requirements" / "node" / "package-lock.json").read_bytes())
    versions = [lock["packages"][f"node_modules/{package}"]["version"] for package in NODE_PACKAGES[name]]
    assert table()[name] == " and ".join(versions)


def test_the_table_has_both_versions_of_openai_python() -> None:
    versions = [*pinned("dev.lock", "openai"), *pinned("clients.lock", "openai")]
    assert table()["openai"] == " and ".join(versions)


def test_the_source_of_vllms_shape_is_the_one_of_the_table() -> None:
    script = (ROOT / "tests" / "clients" / "scripts" / "vllm_bench_shape.py").read_text(encoding="utf-8")
    assert table()["vllm bench serve"].removeprefix("source of ") in script
