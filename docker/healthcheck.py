"""Health check of the images: `healthcheck.py SETTING DEFAULT_PORT PATH`. Exit status 0 when the answer is a 200.

SETTING is the name of the setting that holds the port. http.client and no urllib: that one would send the request to
a proxy when the container's environment names one. Standard library only; it runs in the image's own Python.
"""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Sequence

_TIMEOUT_S = 4.0


def main(arguments: Sequence[str]) -> int:
    """The program. Docker knows two states of health: 0 and 1."""
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
