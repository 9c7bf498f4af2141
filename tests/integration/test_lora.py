"""LoRA adapters as models of their own, behind the real Triton, on the stand-in for TensorRT-LLM's LLM API."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llm_pipeline.engine_files.manifest import TOKENIZER_NAME
from tests.fakes.installed import FAKES, write_script
from tests.fakes.model_directory import make_model_directory
from tests.support.pytorch_models import make_adapter
from tests.support.stack import MODEL, RunningStack, running_stack

pytestmark = pytest.mark.triton

SUPPORT, SQL = f"{MODEL}:support", "sql"
FILE = f"""
[[models]]
name = "{MODEL}"
executor = "tensorrt_llm_pytorch"

[[models]]
name = "{SUPPORT}"
aliases = ["support"]
parent = "{MODEL}"
lora_dir = "adapters/support"
default_max_tokens = 3

[[models]]
name = "{SQL}"
parent = "{MODEL}"
lora_dir = "adapters/sql"
[models.limits]
max_tokens = 50
"""


@pytest.fixture(scope="module")
def lora_stack(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("lora")
    make_model_directory(
        folder / "model",
        tokenizer=engine_dir / TOKENIZER_NAME,
        model_name=MODEL,
        version="1.3.0",
        vocab_size=49152,
        max_seq_len=8192,
        max_batch_size=64,
    )
    for name in ("support", "sql"):
        make_adapter(folder / "adapters" / name)
    (folder / "deployment.toml").write_text(FILE)
    script = write_script(folder / "script.json", version="1.3.0", steps_per_s=200)
    environment = {"DEPLOYMENT": str(folder / "deployment.toml"), "FAKE_TENSORRT_LLM": str(script)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(FAKES)  # Triton's stubs import modules from their working directory
        with running_stack(folder / "run", folder / "model", **environment) as stack:
            yield stack


def text_of(stack: RunningStack, model: str) -> str:
    answer = stack.complete(model=model, prompt="The capital of France is", temperature=0, max_tokens=12)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == model
    return str(answer.json()["choices"][0]["text"])


def test_each_adapter_has_texts_of_its_own_alone_and_beside_others(lora_stack: RunningStack) -> None:
    names = [MODEL, SUPPORT, SQL]
    alone = [text_of(lora_stack, name) for name in names]
    assert len(set(alone)) == 3
    assert text_of(lora_stack, "support") == alone[1]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(lambda name: text_of(lora_stack, name), names * 4)) == alone * 4


def test_models_lists_adapters_with_their_parent(lora_stack: RunningStack) -> None:
    with lora_stack.client() as client:
        cards = {card["id"]: card for card in client.get("/openai/v1/models").json()["data"]}
    assert list(cards) == [MODEL, SUPPORT, "support", SQL]
    assert [cards[name]["parent"] for name in cards] == [None, MODEL, MODEL, MODEL]
    assert {card["max_model_len"] for card in cards.values()} == {8192}
    assert all(card["capabilities"]["lora"] for card in cards.values())
    assert cards[SUPPORT]["limits"]["default_max_tokens"] == 3


def test_adapter_has_limits_and_defaults_of_its_own(lora_stack: RunningStack) -> None:
    usage = lora_stack.complete(model=SUPPORT, prompt="Hello").json()["usage"]
    assert usage["completion_tokens"] == 3
    assert lora_stack.complete(model=SQL, prompt="Hello", max_tokens=51).status_code == 400


def test_unknown_adapter_is_a_404(lora_stack: RunningStack) -> None:
    answer = lora_stack.complete(model=f"{MODEL}:other", prompt="Hello")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(("name", "status"), [(SUPPORT, 200), ("other", 400)])
def test_clients_of_triton_name_the_adapter_in_a_tensor(lora_stack: RunningStack, name: str, status: int) -> None:
    """Triton has no status for a model that does not exist; the message has the pipeline's code."""
    body = {"text_input": "The capital of France is", "max_tokens": 12, "temperature": 0, "lora_name": name}
    url = f"{lora_stack.triton_http_url}/v2/models/{MODEL}/generate"
    answer = httpx.post(url, json=body, timeout=30)
    if status == 200:
        assert answer.json()["text_output"] == text_of(lora_stack, SUPPORT)
    else:
        assert answer.status_code >= 400
        assert "model_not_found" in answer.text
