"""`python -m frontend`: serves completions, in this process or in several workers that it supervises."""

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
        # Without the input, which may be an API key.
        problems = [f"{'.'.join(map(str, item['loc'])).upper()}: {item['msg']}" for item in error.errors()]
        sys.stderr.write("Invalid settings:\n" + "\n".join(problems) + "\n")
        return 2
    # gRPC reads this variable when it is imported. Workers inherit it.
    if settings.grpc_experiments != "none":
        os.putenv("GRPC_EXPERIMENTS", settings.grpc_experiments)
    if settings.frontend_workers > 1:
        configure_logging(settings)
        return Supervisor(settings).run()
    from frontend.server import serve  # imports gRPC, so after the variable is set; a supervisor does not need it

    return serve(settings, SharedState.single_process())


if __name__ == "__main__":
    sys.exit(main())
