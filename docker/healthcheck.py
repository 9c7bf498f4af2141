"""Health check of the images: `healthcheck.py SETTING DEFAULT_PORT PATH`. Exit status 0 if the response is a 200.

SETTING is the environment variable with the port. Standard library only, because it runs in the image's own Python, and
http.client rather than urllib, which would use a proxy of the container's environment.
"""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Sequence

_TIMEOUT_S = 4.0


def main(arguments: Sequence[str]) -> int:
    """Runs the check and returns its exit status: 0 healthy, 1 unhealthy."""
    setting, default_port, path = arguments
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get(setting) or default_port), _TIMEOUT_S)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.stdout.write(f"{path}: {error}\n")
        return 1
    sys.stdout.write(f"{path}: {status}\n")
    return 0 if status == http.HTTPStatus.OK else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
