"""lm-evaluation-harness on local files: its scores and log-likelihoods are those of the weights, computed in numpy.

Its texts over chat are those of completions of the rendered conversations.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from build_engine.cpu.default_model import find_model
from tests.support.clients import BIN, Clients
from tests.support.llama_reference import LlamaReference
from tests.support.stack import MODEL

pytestmark = [pytest.mark.triton, pytest.mark.clients]

TASKS = Path(__file__).parent / "lm_eval_tasks"
TOLERANCE = 2e-2  # of a sum over up to seven tokens, each within 3e-3


class Reference:
    """The results that the harness should report, computed from the weights alone."""

    def __init__(self, tokenizer_file: Path) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
        self._model = LlamaReference(find_model(None).path)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def log_likelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        """The sum over the continuation's tokens, and whether greedy decoding would have chosen them all."""
        start, ids = len(self._ids(context)), self._ids(context + continuation)
        rows = self._model.logprobs(ids)[start - 1 : -1]
        chosen = ids[start:]
        total = sum(float(row[token_id]) for row, token_id in zip(rows, chosen, strict=True))
        return total, all(row.argmax() == token_id for row, token_id in zip(rows, chosen, strict=True))

    def greedy(self, prompt: str, *, until: str, max_tokens: int) -> str:
        """The text before `until`."""
        ids = self._ids(prompt)
        text = ""
        for count in range(1, max_tokens + 1):
            ids.append(int(self._model.logprobs(ids)[-1].argmax()))
            text = self._tokenizer.decode(ids[-count:])
            if until in text:
                return text.split(until)[0]
        return text


@pytest.fixture(scope="module")
def reference(engine_dir: Path) -> Reference:
    return Reference(engine_dir / "tokenizer.json")


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TASKS / "capitals.jsonl").read_text(encoding="utf-8").splitlines()]


def evaluate(
    clients: Clients, tasks: Sequence[str], *options: str
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Scores and samples by task, of one run of the harness's command."""
    for file in TASKS.iterdir():  # the tasks name their data relative to where the harness runs
        shutil.copy(file, clients.home)
    command: list[str | Path] = [BIN / "lm_eval", "run", *options]
    command += ["--include_path", ".", "--tasks", ",".join(tasks), "--log_samples", "--output_path", "out"]
    clients.run(command, {"OPENAI_API_KEY": clients.stack.api_key})
    (folder,) = (clients.home / "out").iterdir()
    (results,) = folder.glob("results_*.json")
    samples = {}
    for task in tasks:
        (file,) = folder.glob(f"samples_{task}_*.jsonl")
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        samples[task] = sorted(lines, key=lambda sample: sample["doc_id"])
    return json.loads(results.read_text(encoding="utf-8"))["results"], samples


def test_lm_eval(clients: Clients, reference: Reference, documents: list[dict[str, Any]]) -> None:
    model = (
        f"base_url={clients.stack.completions_url},model={MODEL},tokenizer={clients.tokenizer_dir},"
        "tokenizer_backend=huggingface,num_concurrent=2"
    )
    options = ("--model", "local-completions", "--model_args", model, "--batch_size", "4")
    scores, samples = evaluate(clients, ("capitals_generate", "capitals_choose"), *options)
    _check_choices(scores["capitals_choose"], samples["capitals_choose"], documents, reference)
    _check_generation(scores["capitals_generate"], samples["capitals_generate"], documents, reference)


def test_lm_eval_over_chat(clients: Clients, documents: list[dict[str, Any]]) -> None:
    url = clients.stack.completions_url.replace("completions", "chat/completions")
    model = f"base_url={url},model={MODEL},num_concurrent=2"
    options = ("--model", "local-chat-completions", "--model_args", model, "--apply_chat_template")
    scores, samples = evaluate(clients, ("capitals_generate",), *options)
    template = (clients.engine_dir / "chat_template.jinja").read_text(encoding="utf-8")
    prompts = [
        ImmutableSandboxedEnvironment()
        .from_string(template)
        .render(messages=[{"role": "user", "content": question(document)}], add_generation_prompt=True)
        for document in documents
    ]
    answer = clients.stack.complete(prompt=prompts, max_tokens=12, temperature=0, stop=["."])
    expected = [choice["text"] for choice in answer.json()["choices"]]
    assert [sample["resps"] for sample in samples["capitals_generate"]] == [[[text]] for text in expected]
    right = sum(text.strip() == document["capital"] for text, document in zip(expected, documents, strict=True))
    assert scores["capitals_generate"]["exact_match,stripped"] == pytest.approx(right / len(documents))


def question(document: dict[str, Any]) -> str:
    """The prompt of the tasks, by their `doc_to_text`."""
    return f"The capital of {document['country']} is"


def _check_choices(
    scores: dict[str, Any], samples: list[dict[str, Any]], documents: list[dict[str, Any]], reference: Reference
) -> None:
    right = right_by_length = 0
    for sample, document in zip(samples, documents, strict=True):
        context = question(document)
        expected = [reference.log_likelihood(context, f" {choice}") for choice in document["choices"]]
        found = [(float(value), is_greedy == "True") for value, is_greedy in sample["filtered_resps"]]
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=TOLERANCE)
        assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
        values = [value for value, _ in expected]
        by_length = [value / len(choice) for value, choice in zip(values, document["choices"], strict=True)]
        answer = document["choices"].index(document["capital"])
        right += values.index(max(values)) == answer
        right_by_length += by_length.index(max(by_length)) == answer
    assert scores["acc,none"] == pytest.approx(right / len(documents))
    assert scores["acc_norm,none"] == pytest.approx(right_by_length / len(documents))
    assert 0 < right < len(documents), "a task that is all right or all wrong shows little"


def _check_generation(
    scores: dict[str, Any], samples: list[dict[str, Any]], documents: list[dict[str, Any]], reference: Reference
) -> None:
    right = 0
    for sample, document in zip(samples, documents, strict=True):
        expected = reference.greedy(question(document), until=".", max_tokens=12)
        assert sample["resps"] == [[expected]]
        right += expected.strip() == document["capital"]
    assert scores["exact_match,stripped"] == pytest.approx(right / len(documents))
    assert right > 0
