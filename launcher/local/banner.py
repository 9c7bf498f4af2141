"""Prints where a running stack can be reached, its key, and an example request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from rich.console import Console


def print_banner(
    console: Console,
    *,
    base_url: str,
    models: Sequence[str],
    api_key: str | None,
    key_file: Path | None,
    log_dir: Path,
) -> None:
    """Prints the URLs, the key and a curl command.

    `api_key` is None if a file of hashed keys defines the keys; `key_file` is where a generated key is stored. The link
    to the playground carries the key in its fragment, which browsers send to no server; the page removes it.
    """
    stored = f"  (in {_relative(key_file)})" if key_file else ""
    rows = {
        "API": f"{base_url}/openai/v1/completions",
        "API key": f"{api_key}{stored}" if api_key else "one of API_KEYS_FILE",
        "playground": f"{base_url}/#key={quote(api_key)}" if api_key else f"{base_url}/",
        "API docs": f"{base_url}/docs",
        "logs": str(_relative(log_dir)),
        "version": version("triton-completions"),
    }
    console.print(f"\n[bold green]Ready.[/] {', '.join(models)} on {base_url}", highlight=False, soft_wrap=True)
    for name, value in rows.items():
        console.print(f"  {name:<12}{value}", highlight=False, markup=False, soft_wrap=True)
    console.print("\nTry it:\n", highlight=False)
    console.print(_curl_command(base_url, models[0], api_key), highlight=False, markup=False, soft_wrap=True)
    console.print("\nCtrl-C stops everything.", highlight=False)


def _curl_command(base_url: str, model: str, api_key: str | None) -> str:
    body = json.dumps({"model": model, "prompt": "Once upon a time", "max_tokens": 32, "stream": True})
    return (
        f"curl -N {base_url}/openai/v1/completions \\\n"
        f"  -H 'Authorization: Bearer {api_key or 'YOUR_KEY'}' -H 'Content-Type: application/json' \\\n"
        f"  -d '{body}'"
    )


def _relative(path: Path) -> Path:
    """Returns the path as a person in the current directory would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
