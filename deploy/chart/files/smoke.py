"""Run by `helm test`: the service is ready, and completes a prompt if API_KEY is set or no key is needed.

Standard library only. Exit status 0 if all is well; otherwise 1, with one line.
"""

from __future__ import annotations

import http.client
import json
import os
import sys

_TIMEOUT_S = 60.0


def main() -> int:
    host, port, model = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    key = os.environ.get("API_KEY")
    try:
        status, body = _request(host, port, "GET", "/health/ready", None, None)
        if status != http.HTTPStatus.OK:
            return _failed(f"/health/ready answered {status}: {body}")
        if key is None and os.environ.get("NEEDS_KEY"):
            sys.stdout.write("Ready. Without test.apiKey, no completion was requested.\n")
            return 0
        prompt = json.dumps({"model": model, "prompt": "Hello", "max_tokens": 4})
        status, body = _request(host, port, "POST", "/v1/completions", prompt, key)
        if status != http.HTTPStatus.OK:
            return _failed(f"/v1/completions answered {status}: {body}")
        usage = json.loads(body)["usage"]
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return _failed(f"{host}:{port}: {type(error).__name__}: {error}")
    sys.stdout.write(f"Ready, and completed a prompt: {usage['completion_tokens']} tokens.\n")
    return 0


def _request(host: str, port: int, method: str, path: str, body: str | None, key: str | None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()


def _failed(reason: str) -> int:
    sys.stdout.write(f"Failed: {reason[:500]}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
