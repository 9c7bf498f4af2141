"""The tokens that one request is charged for, which are known when the engine has ended its work for every choice."""

from __future__ import annotations

from frontend.generation.completion_run import Choice
from frontend.limits.port import Settle


class Charge:
    """Settles a reservation once: with the tokens used, or with none if the request was never started."""

    def __init__(self, settle: Settle | None, choices: int) -> None:
        self._settle = settle
        self._running = choices
        self._prompts: dict[int, int] = {}  # tokens by index: the choices of one prompt share it
        self._completion_tokens = 0

    def end(self, choice: Choice) -> None:
        """The engine's work for this choice has ended."""
        if self._settle is None:
            return
        self._prompts[choice.prompt_index] = max(self._prompts.get(choice.prompt_index, 0), choice.prompt_tokens)
        self._completion_tokens += choice.completion_tokens
        self._running -= 1
        if self._running == 0:
            self._finish(sum(self._prompts.values()) + self._completion_tokens)

    def cancel(self) -> None:
        """The request was refused after its tokens were reserved."""
        self._finish(0)

    def _finish(self, used: int) -> None:
        settle, self._settle = self._settle, None
        if settle is not None:
            settle(used)
