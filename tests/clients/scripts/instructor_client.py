"""instructor: Pydantic models by tools, strict tools and JSON schema, without a retry; partial and iterable streams."""

from __future__ import annotations

from importlib.metadata import version

import instructor
import openai
from endpoint import API_KEY, BASE_URL, MODEL, report
from weather import ASKED, Forecast

MODES = (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA)
ASKED_FOR = {"model": MODEL, "messages": ASKED, "max_tokens": 200, "temperature": 0, "max_retries": 0}


def client_of(mode: instructor.Mode) -> instructor.Instructor:
    return instructor.from_openai(openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0), mode=mode)


def by_mode(mode: instructor.Mode) -> dict[str, object]:
    return client_of(mode).create(response_model=Forecast, **ASKED_FOR).model_dump(mode="json")


def main() -> None:
    *_, partial = client_of(instructor.Mode.TOOLS).create_partial(response_model=Forecast, strict=False, **ASKED_FOR)
    modes = {mode.value: by_mode(mode) for mode in MODES}
    report({"version": version("instructor"), "modes": modes, "partial": partial.model_dump(mode="json")})


main()
