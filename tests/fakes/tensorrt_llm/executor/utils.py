"""`tensorrt_llm.executor.utils`: RequestError, and whether the caller runs in an event loop."""

import asyncio


class RequestError(RuntimeError):
    """One request failed; the LLM goes on."""


def has_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
