"""Health check of the images: `healthcheck.py SETTING DEFAULT_PORT PATH [ENSEMBLE]`. Exit status 0 if all is well.

The response to PATH has to be a 200. With the name of an ensemble, each of its stages has to answer a request as well:
Triton reports a model as ready even when its process hangs. SETTING is the environment variable with the port; if
TRITON_SECRET is set, it is sent.

Standard library only, because it runs in the image's own Python, and http.client rather than urllib, which would use a
proxy of the container's environment.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Sequence

_TIMEOUT_S = 4.0
# What each stage answers at once; tests compare it with launcher/local/stage_monitor.py.
STAGE_MESSAGES = {"preprocess": {"describe": True}, "decode": {"pulse": True}, "postprocess": {"chunk": ""}}


def main(arguments: Sequence[str]) -> int:
    """Runs the check and returns its exit status: 0 healthy, 1 unhealthy."""
    setting, default_port, path, *ensembles = arguments
    port = int(os.environ.get(setting) or default_port)
    checks: list[tuple[str, str, str | None]] = [("GET", path, None)]
    for ensemble in ensembles:
        for stage, message in STAGE_MESSAGES.items():
            model = stage if ensemble == "ensemble" else f"{ensemble}-{stage}"
            checks.append(("POST", f"/v2/models/{model}/generate", json.dumps(message)))
    return 0 if all(_passes(port, *check) for check in checks) else 1


def _passes(port: int, method: str, path: str, body: str | None) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    secret = os.environ.get("TRITON_SECRET")
    try:
        connection.request(method, path, body, headers={"triton-secret": secret} if secret else {})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.stdout.write(f"{path}: {error}\n")
        return False
    sys.stdout.write(f"{path}: {status}\n")
    return status == http.HTTPStatus.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
