"""A DecodeStage that the test drives."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.driven_channel import DrivenChannel
from tests.support.driven_stage import DrivenStage


@pytest.fixture
def decode() -> Iterator[DrivenStage]:
    decode = DrivenStage()
    yield decode
    decode.close()


@pytest.fixture
def channel() -> Iterator[DrivenChannel]:
    channel = DrivenChannel()
    yield channel
    channel.close()
