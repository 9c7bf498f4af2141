"""Messages for invalid values: the setting, what is allowed, and the value."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError

from launcher.setting_problems import setting_problems
from launcher.settings import StackSettings
from llm_pipeline.runtime.program_settings import ProgramSettings


class Example(ProgramSettings):
    port: int = Field(1, ge=1, le=65535)
    share: float = Field(1.0, gt=0)
    wait_s: float = Field(3.0, ge=2)
    most: int = Field(0, le=9)
    mode: Literal["open", "private"] = "open"
    is_on: bool = False
    api_key: int = 0
    pair: tuple[int, int] = (0, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": "abc"}, "PORT must be a whole number from 1 to 65535, not 'abc'."),
        ({"port": "0"}, "PORT must be a whole number from 1 to 65535, not '0'."),
        ({"port": "1.5"}, "PORT must be a whole number from 1 to 65535, not '1.5'."),
        ({"share": "0"}, "SHARE must be a number above 0, not '0'."),
        ({"share": "much"}, "SHARE must be a number above 0, not 'much'."),
        ({"wait_s": "1"}, "WAIT_S must be a number of at least 2, not '1'."),
        ({"most": "10"}, "MOST must be a whole number of at most 9, not '10'."),
        ({"mode": "shut"}, "MODE must be one of open, private, not 'shut'."),
        ({"is_on": "maybe"}, "IS_ON must be true or false, not 'maybe'."),
        ({"api_key": "sk-secret"}, "API_KEY must be a whole number."),
    ],
)
def test_message(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Example(**values)
    assert setting_problems(Example, caught.value) == [message]


def test_other_problems_keep_their_own_words_and_each_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        Example(port="x", pair=("1",))
    first, second = setting_problems(Example, caught.value)
    assert first.startswith("PORT must be")
    assert second.startswith("Invalid value of PAIR")


def test_renamed_setting_keeps_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_HANG_LIMIT_S", "3")
    with pytest.raises(ValidationError) as caught:
        StackSettings()
    (message,) = setting_problems(StackSettings, caught.value)
    assert "TRITON_HANG_TIMEOUT_S" in message
