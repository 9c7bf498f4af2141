"""Masks over the socket are those of the matcher, for any text and any draft, and failures are told apart."""

from __future__ import annotations

import random
import select
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llm_pipeline.guides.mask_server import pack_row
from llm_pipeline.guides.masks import GuideError, GuidesUnavailableError, MaskSource
from tests.support.mask_server import serving_masks

VOCAB_SIZE = 70
ROW_BYTES = 12
DEADLINE_S = 10.0


class LadderMaker:
    """After the tokens so far, whose sum is s, the tokens s and s + 1 are allowed (modulo 70)."""

    def __init__(self, total: int = 0) -> None:
        self._total = total
        self.failure: GuideError | None = None

    def copy(self) -> LadderMaker:
        maker = LadderMaker(self._total)
        maker.failure = self.failure
        return maker

    def advance(self, token_ids: Sequence[int]) -> None:
        self._total += sum(token_ids)

    def masks(self, draft: Sequence[int], is_late: Callable[[], bool]) -> list[bytes]:
        if self.failure is not None:
            raise self.failure
        rows, total = [], self._total
        for token_id in (*draft, None):
            allowed = {total % VOCAB_SIZE, (total + 1) % VOCAB_SIZE}
            rows.append(self._row(allowed))
            if token_id is None or token_id not in allowed or is_late():
                break
            total += token_id
        return rows

    def _row(self, allowed: set[int]) -> bytes:
        row = np.zeros(VOCAB_SIZE, np.uint8)
        row[list(allowed)] = 1
        return pack_row(np.packbits(row, bitorder="little").tobytes(), ROW_BYTES)


def answer_of(source: MaskSource) -> npt.NDArray[np.bool_]:
    """Waits for the answer."""
    while (masks := source.receive()) is None:
        assert select.select([source], [], [], DEADLINE_S)[0], "no answer"
    return masks


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="m-") as name:
        yield Path(name)


Connect = Callable[..., MaskSource]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connects sources, and closes them."""
    with ExitStack() as sources:

        def connect_one(address: str, vocab_size: int = VOCAB_SIZE) -> MaskSource:
            source = MaskSource(address, vocab_size=vocab_size)
            sources.callback(source.close)
            return source

        yield connect_one


@pytest.fixture
def address(directory: Path) -> Iterator[str]:
    with serving_masks(LadderMaker(), directory) as address:
        yield address


def allowed(row: npt.NDArray[np.bool_]) -> list[int]:
    token_ids: list[int] = np.flatnonzero(row).tolist()
    return token_ids


def test_an_answer_has_a_row_for_the_next_token_and_each_allowed_draft_token(address: str, connect: Connect) -> None:
    source = connect(address)
    source.ask()
    assert [allowed(row) for row in answer_of(source)] == [[0, 1]]
    source.ask([1], [2, 3, 99, 4])
    masks = answer_of(source)
    assert masks.shape == (3, VOCAB_SIZE)
    assert [allowed(row) for row in masks] == [[1, 2], [3, 4], [6, 7]]
    source.ask([2])
    assert [allowed(row) for row in answer_of(source)] == [[3, 4]], "a draft is not added to the text"


def test_requests_of_one_guide_are_independent(address: str, connect: Connect) -> None:
    dice = random.Random(1)
    sources = [connect(address) for _ in range(20)]
    totals = [0] * len(sources)
    for _ in range(300):
        number = dice.randrange(len(sources))
        token_id = totals[number] % VOCAB_SIZE + dice.randrange(2)
        totals[number] += token_id
        sources[number].ask([token_id])
        if dice.random() < 0.1:
            sources[number].close()
            sources[number], totals[number] = connect(address), 0
        else:
            expected = sorted({totals[number] % VOCAB_SIZE, (totals[number] + 1) % VOCAB_SIZE})
            assert allowed(answer_of(sources[number])[0]) == expected


def test_a_guide_that_cannot_go_on_reports_the_reason(directory: Path, connect: Connect) -> None:
    maker = LadderMaker()
    maker.failure = GuideError("too many states.")
    with serving_masks(maker, directory) as address:
        source = connect(address)
        source.ask()
        with pytest.raises(GuideError, match="too many states"):
            answer_of(source)


def test_a_server_that_is_stopped_is_not_the_guides_fault(directory: Path, connect: Connect) -> None:
    with serving_masks(LadderMaker(), directory) as address:
        source = connect(address)
        source.ask()
        answer_of(source)
    source.ask([0])
    for _ in range(2):
        with pytest.raises(GuidesUnavailableError):
            answer_of(source)


def test_a_process_that_ends_by_itself_has_exceeded_a_limit(directory: Path, connect: Connect) -> None:
    address = str(directory / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen()
        source = connect(address)
        source.ask()
        accepted, _ = listener.accept()
        accepted.close()
        with pytest.raises(GuideError, match="more time or memory"):
            answer_of(source)
    late = connect(address)
    late.ask()
    with pytest.raises(GuideError, match="more time or memory"):
        answer_of(late)


def test_an_answer_longer_than_the_sockets_buffer_arrives_whole(directory: Path, connect: Connect) -> None:
    class LongMaker(LadderMaker):
        def copy(self) -> LongMaker:
            return LongMaker()

        def masks(self, draft: Sequence[int], is_late: Callable[[], bool]) -> list[bytes]:
            return [bytes([n % 256]) * (1 << 15) for n in range(1 + len(draft))]

    with serving_masks(LongMaker(), directory) as address:
        source = connect(address, 1 << 18)
        source.ask([], range(100))
        masks = answer_of(source)
        assert masks.shape == (101, 1 << 18)
        assert [allowed(row)[:3] for row in masks[[0, 100]]] == [[], [2, 5, 6]]
        source.ask()
        assert len(answer_of(source)) == 1
