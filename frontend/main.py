"""The program: one process that serves, or a supervisor of several."""

from __future__ import annotations

import os
import sys

from pydantic import ValidationError

from frontend.multiprocess.shared_state import SharedState
from frontend.multiprocess.supervisor import Supervisor
from frontend.observability.request_log import configure_logging
from frontend.settings import FrontendSettings


def main() -> int:
    """Returns the exit status."""
    try:
        settings = FrontendSettings()
    except ValidationError as error:
        # Without the input: it may be a key.
        problems = [f"{'.'.join(map(str, item['loc'])).upper()}: {item['msg']}" for item in error.errors()]
        sys.stderr.write("The settings are not usable:\n" + "\n".join(problems) + "\n")
        return 2
    # Read when gRPC is imported, and inherited by workers.
    if settings.grpc_experiments != "none":
        os.putenv("GRPC_EXPERIMENTS", settings.grpc_experiments)
    if settings.frontend_workers > 1:
        configure_logging(settings)
        return Supervisor(settings).run()
    from frontend.server import run  # not before gRPC's setting; and a supervisor has no use for it

    return run(settings, SharedState.single_process())
