"""The lock file of the JavaScript clients works with any npm registry and cannot be satisfied by other bytes."""

from __future__ import annotations

import json
from pathlib import Path

NODE = Path(__file__).parents[2] / "requirements" / "node"


def test_lock_of_javascript_clients_has_hashes_and_no_addresses() -> None:
    lock = json.loads((NODE / "package-lock.json").read_bytes())
    wanted = json.loads((NODE / "package.json").read_bytes())["dependencies"]
    assert lock["packages"].pop("")["dependencies"] == wanted
    for name, package in lock["packages"].items():
        assert package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, "lock it with scripts/lock clients"
    assert {f"node_modules/{name}" for name in wanted} <= set(lock["packages"])
