"""The deployment file: its keys, and errors that name the line and the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_pipeline.protocol.messages import CompletionParameters
from llm_pipeline.runtime.deployment import DeployedModel, Deployment, ModelKind
from llm_pipeline.runtime.deployment_errors import DeploymentError
from llm_pipeline.runtime.settings import PipelineSettings, settings_of_model

TWO = """
[[models]]
name = "org/Base"
aliases = ["base"]
engine_dir = "engines/base"
default_max_tokens = 0

[models.settings]
cpu_kv_cache_gib = 2

[[models]]
name = "org/base:adapter"
parent = "org/Base"
kind = "inflight_batcher_llm"
triton = ["a:8001", "[::1]:8001"]
lora_task_id = 3
[models.defaults]
temperature = 0.5
[models.limits]
max_tokens = 100
"""


def load(folder: Path, text: str) -> Deployment:
    path = folder / "deployment.toml"
    path.write_text(text)
    return Deployment.load(path)


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(DeploymentError) as caught:
        load(folder, text)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_file_with_all_keys(tmp_path: Path) -> None:
    first, second = load(tmp_path, TWO).models
    assert first.names == ("org/Base", "base")
    assert first.engine_dir == tmp_path / "engines" / "base"
    assert first.settings.model_dump(exclude_unset=True) == {"cpu_kv_cache_gib": 2.0}
    assert (first.ensemble, first.is_local) == ("org-base", True)
    assert (second.kind, second.triton) == (ModelKind.INFLIGHT_BATCHER_LLM, ("a:8001", "[::1]:8001"))
    assert (second.ensemble, second.is_local, second.parent) == ("ensemble", False, "org/Base")


def test_absolute_engine_directory_is_unchanged(tmp_path: Path) -> None:
    assert load(tmp_path, '[[models]]\nname = "a"\nengine_dir = "/e"\n').models[0].engine_dir == Path("/e")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[[models]]\nname = "a"\n\n[models.limits]\nmax_in_flight = 0\n', "line 5: models[0].limits.max_in_flight: "),
        ('[[models]]\nname = "a"\n[[models]]\naliases = ["b"]\n', "line 3: models[1].name: Field required"),
        ('[[models]]\nname = "a"\nnmae = 1\n', "line 3: models[0].nmae: unknown key. Known keys: name, aliases"),
        (
            '[[models]]\nname = "a"\nsettings.port = 1\n',
            "line 3: models[0].settings.port: unknown key. docs/settings.md lists",
        ),
        ('[[models]]\nname = "a"\n[models.settings]\ncpu_threads = "x"\n', "line 4: models[0].settings.cpu_threads: "),
        ('[[models]]\nname = "a b"\n', "line 2: models[0].name: "),
        ('[[models]]\nname = "a"\naliases = ["b", ""]\n', "line 3: models[0].aliases[1]: "),
        ('[[models]]\nname = "a"\ntriton = "no-port"\n', "line 3: models[0].triton[0]: "),
        ('[[models]]\nname = "a"\nlora_task_id = 1\n', "line 1: models[0]: lora_task_id needs kind"),
        (
            '[[models]]\nname = "a"\nkind = "inflight_batcher_llm"\nengine_dir = "e"\n',
            "line 1: models[0]: engine_dir is for kind ensemble",
        ),
        ('[[models]]\nname = "a"\n[[models]]\nname = "b"\naliases = ["a"]\n', "line 1: the name a is used by both"),
        ('[[models]]\nname = "A"\n[[models]]\nname = "a"\n', "would both have a Triton model called a."),
        ('[[models]]\nname = "a"\n[[models]]\nname = "a-decode"\n', "Triton model called a-decode."),
        ("models = []\n", "no model is defined"),
        ('[models]\nname = "a"\n', "line 1: models: "),
        ('[[models]]\nname = "a\n', "invalid TOML: "),
        ("", "models: Field required"),
    ],
)
def test_mistake_is_reported_with_line_and_key(tmp_path: Path, text: str, expected: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith("deployment.toml")
    assert expected in found[0]


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    text = '[[models]]\nname = "a"\nkeys = 3\n[[models]]\nname = ""\n[models.defaults]\ntop_p = 2\n'
    assert [line.split(": ")[1] for line in problems(tmp_path, text)] == [
        "models[0].keys",
        "models[1].name",
        "models[1].defaults.top_p",
    ]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="cannot be read: No such file"):
        Deployment.load(tmp_path / "none.toml")


def test_defaults_apply_to_omitted_fields() -> None:
    model = DeployedModel.model_validate(
        {"name": "a", "default_max_tokens": 5, "defaults": {"temperature": 0.5, "top_k": 3}}
    )
    plain = CompletionParameters("k", "r", prompt_text="x", top_k=0)
    filled = model.with_defaults(plain)
    assert (filled.temperature, filled.top_k, filled.max_tokens, filled.top_p) == (0.5, 0, 5, None)
    parameters = CompletionParameters("k", "r", prompt_text="x", temperature=0.0, top_k=1, max_tokens=1)
    assert model.with_defaults(parameters) is parameters


def test_parameters_of_a_model_take_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_DIR", "/environment")
    monkeypatch.setenv("SCRIPTED_STEPS_PER_S", "5")
    config = (
        '{"parameters": {"engine_dir": {"string_value": "/own"}, "coalesce": {"string_value": "False"},'
        ' "FORCE_CPU_ONLY_INPUT_TENSORS": {"string_value": "no"}}}'
    )
    settings = settings_of_model({"model_config": config})
    assert (settings.engine_dir, settings.coalesce, settings.scripted_steps_per_s) == (Path("/own"), False, 5)
    assert settings_of_model({"model_config": "{}"}) == PipelineSettings()
