"""Guides in the test's own process, whose masks arrive when the test wants it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llm_pipeline.guides.masks import GuideError
from llm_pipeline.protocol.messages import GenerationRequest, Guide, GuideType
from tests.support.hash_model import VOCABULARY

Mask: TypeAlias = "npt.NDArray[np.bool_]"
Allow: TypeAlias = Callable[[tuple[int, ...]], Mask]  # text so far -> tokens that may come next; may raise GuideError


def every_seventh_forbidden(text: tuple[int, ...]) -> Mask:
    """Forbids a few tokens, which depend on the whole text."""
    return np.asarray(np.arange(VOCABULARY) % 7 != (sum(text) + len(text)) % 7)


def guided(request: GenerationRequest, address: str = "") -> GenerationRequest:
    """Returns the request with a guide, whose masks are at `address`, by default the request's key."""
    return replace(request, guide=Guide(GuideType.REGEX, ".*"), guide_address=address or request.key)


class FakeMaskSource:
    """The masks of one text. They arrive at once while `is_open`, after `delay` attempts to receive them.

    Checks that each question comes after the answer to the one before, and that accepted tokens were allowed.
    """

    def __init__(self, allow: Allow, delays: Iterable[int] = ()) -> None:
        self._allow = allow
        self._delays = iter(delays)
        self._text: tuple[int, ...] = ()
        self._answer: npt.NDArray[np.bool_] | Exception | None = None
        self._delay = 0
        self._event = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.questions: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self.is_open = True
        self.is_closed = False

    def fileno(self) -> int:
        return self._event

    def ask(self, accepted: Sequence[int], draft: Sequence[int]) -> None:
        assert not self.is_closed
        assert self._answer is None, "two questions at a time"
        self.questions.append((tuple(accepted), tuple(draft)))
        for token_id in accepted:
            assert self._allow(self._text)[token_id], "a token that is not allowed"
            self._text = (*self._text, token_id)
        self._delay = next(self._delays, 0)
        try:
            self._answer = np.array(self._rows(draft))
        except Exception as error:  # noqa: BLE001 - the answer
            self._answer = error

    def receive(self) -> npt.NDArray[np.bool_] | None:
        assert not self.is_closed
        self._delay -= 1
        if not self.is_open or self._delay >= 0:
            return None
        answer, self._answer = self._answer, None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            os.close(self._event)

    def stop(self) -> None:
        """Lets no masks arrive until `go`."""
        self.is_open = False
        os.eventfd_read(self._event)

    def go(self) -> None:
        """Lets the masks arrive. From any thread."""
        self.is_open = True
        os.eventfd_write(self._event, 1)

    def _rows(self, draft: Sequence[int]) -> list[Mask]:
        text = self._text
        rows = [self._allow(text)]
        for token_id in draft:
            if not rows[-1][token_id]:
                break
            text = (*text, token_id)
            try:
                rows.append(self._allow(text))
            except GuideError:
                break
        return rows


class FakeGuides:
    """Connects to fake guides. `sources` are the connections by address; those in `stopped` begin without masks."""

    def __init__(
        self,
        allow: Allow = every_seventh_forbidden,
        *,
        stopped: Iterable[str] = (),
        delays: Callable[[str], Iterable[int]] = lambda address: (),
    ) -> None:
        self._allow = allow
        self._stopped = set(stopped)
        self._delays = delays
        self.sources: dict[str, FakeMaskSource] = {}

    def connect(self, address: str) -> FakeMaskSource:
        source = self.sources[address] = FakeMaskSource(self._allow, self._delays(address))
        if address in self._stopped:
            source.stop()
        return source

    def assert_closed(self) -> None:
        """Checks that no connection is left."""
        assert all(source.is_closed for source in self.sources.values())
