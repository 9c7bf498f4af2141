"""openai-python's own retry, against a server whose only slot is in use: times of its requests, and the responses."""

from __future__ import annotations

import threading
import time

import openai
from endpoint import API_KEY, BASE_URL, MODEL, report

answers: list[tuple[int, str | None, str | None, float, float]] = []  # status, 2 headers, times of request and response
asked_at: list[float] = []


def note_request(_: object) -> None:
    asked_at.append(time.monotonic())


def note_answer(response: object) -> None:
    told = response.headers.get("retry-after"), response.headers.get("retry-after-ms")
    answers.append((response.status_code, *told, asked_at[-1], time.monotonic()))


def main() -> None:
    first = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)
    taken = first.completions.create(
        model=MODEL, prompt="a", max_tokens=300, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(taken))
    reader = threading.Thread(target=list, args=(taken,))
    reader.start()
    hooks = {"request": [note_request], "response": [note_answer]}
    client = openai.OpenAI(
        base_url=BASE_URL, api_key=API_KEY, max_retries=8, http_client=openai.DefaultHttpxClient(event_hooks=hooks)
    )
    answer = client.completions.create(model=MODEL, prompt="b", max_tokens=3)
    reader.join(timeout=30)
    report({"version": openai.__version__, "answers": answers, "tokens": answer.usage.completion_tokens})


main()
