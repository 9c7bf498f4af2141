"""The program: one process that serves, or a supervisor of several."""

from __future__ import annotations

import sys

from pydantic import ValidationError

from frontend.request_log import configure_logging
from frontend.settings import FrontendSettings
from frontend.supervisor import Supervisor
from frontend.workers import Workers


def main() -> int:
    """Returns the exit status."""
    try:
        settings = FrontendSettings()
    except ValidationError as error:
        # Without the input: it may be a key.
        problems = [f"{'.'.join(map(str, item['loc'])).upper()}: {item['msg']}" for item in error.errors()]
        sys.stderr.write("The settings are not usable:\n" + "\n".join(problems) + "\n")
        return 2
    if settings.frontend_workers > 1:
        configure_logging(settings)
        return Supervisor(settings).run()
    from frontend.server import run  # a supervisor doesn't load what only workers need

    return run(settings, Workers.alone())
