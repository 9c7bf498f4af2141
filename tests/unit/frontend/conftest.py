"""Fixtures of the front end's tests; what they are made of is in app_under_test.py, which tests import too."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.app import Running, in_process, real_server


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with in_process() as app:
        yield app


@pytest.fixture
async def served() -> AsyncIterator[Running]:
    async with real_server() as app:
        yield app
