"""Address, model and keys of the besieged stack."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

PROBE = "probe"
HOSTILE = "hostile"
FIFTY = tuple(f"hostile-{number:02}" for number in range(50))
KEY_NAMES = (PROBE, HOSTILE, *FIFTY)
COMPLETIONS = "/openai/v1/completions"


@dataclass(frozen=True)
class Target:
    """A front end on plain HTTP, and the plain keys by name."""

    host: str
    port: int
    model: str
    keys: dict[str, str]
    has_guides: bool = True

    def to_json(self) -> bytes:
        """Returns the target for the processes of the load and the probe, whose standard input it is."""
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, data: bytes) -> Target:
        """Reads a target. Raises orjson.JSONDecodeError or TypeError if the data is invalid."""
        return cls(**orjson.loads(data))

    def head(self, key: str | None, length: int, *, path: str = COMPLETIONS, extra: str = "") -> bytes:
        """Returns the head of a POST with a JSON body. `extra` is further header lines, each with its line end."""
        authorization = f"Authorization: Bearer {self.keys[key]}\r\n" if key else ""
        return (
            f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{authorization}"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n{extra}\r\n"
        ).encode()

    def get(self, path: str, *, is_last: bool = True) -> bytes:
        """Returns a GET without a key. `is_last` asks the server to close the connection after its response."""
        close = "Connection: close\r\n" if is_last else ""
        return f"GET {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{close}\r\n".encode()

    def completion(self, key: str | None, *, extra: str = "", **body: Any) -> bytes:
        """Returns a whole completion request; `body` is added to the model's name."""
        content = orjson.dumps({"model": self.model, **body})
        return self.head(key, len(content), extra=extra) + content


def new_keys(secret: str) -> dict[str, str]:
    """Returns a plain key for each name; equal secrets give equal keys."""
    return {name: "sk-siege-" + hashlib.sha256(f"{secret} {name}".encode()).hexdigest()[:32] for name in KEY_NAMES}


def keys_file(keys: dict[str, str]) -> bytes:
    """Returns the content of API_KEYS_FILE: every key with the default limits."""
    entries = [{"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()} for name, key in keys.items()]
    return orjson.dumps(entries, option=orjson.OPT_INDENT_2)
