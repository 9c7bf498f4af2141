"""instructor: Pydantic models by tools, strict tools and JSON schema, without a retry; partial and iterable streams."""

from __future__ import annotations

from importlib.metadata import version

import instructor
import openai
from endpoint import API_KEY, BASE_URL, MODEL, report
from weather import ASKED, Forecast

MODES = (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA)
ASKED_FOR = {"model": MODEL, "messages": ASKED, "max_tokens": 200, "temperature": 0, "max_retries": 0}


def by_mode(mode: instructor.Mode) -> dict[str, object]:
    client = instructor.from_openai(openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0), mode=mode)
    *_, last = client.create_partial(response_model=Forecast, strict=False, **ASKED_FOR)
    return {
        "parsed": client.create(response_model=Forecast, **ASKED_FOR).model_dump(mode="json"),
        "partial": last.model_dump(mode="json"),
    }


def main() -> None:
    report({"version": version("instructor"), "modes": {mode.value: by_mode(mode) for mode in MODES}})


main()
