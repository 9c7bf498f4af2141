"""The config.pbtxt of each model agrees with protocol/tensors.py, and the ensemble connects all tensors."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from llm_pipeline.protocol import tensors
from llm_pipeline.protocol.arrays import TensorSpec
from llm_pipeline.triton.config_pbtxt import with_tensors

MODEL_REPOSITORY = Path(__file__).parents[2] / "model_repository"
MODELS = {
    tensors.PREPROCESS_MODEL: (tensors.PREPROCESS_INPUTS, tensors.PREPROCESS_OUTPUTS),
    tensors.DECODE_MODEL: (tensors.DECODE_INPUTS, tensors.DECODE_OUTPUTS),
    tensors.POSTPROCESS_MODEL: (tensors.POSTPROCESS_INPUTS, tensors.POSTPROCESS_OUTPUTS),
    tensors.ENSEMBLE_MODEL: (tensors.ENSEMBLE_INPUTS, tensors.ENSEMBLE_OUTPUTS),
}
STAGES = [tensors.PREPROCESS_MODEL, tensors.DECODE_MODEL, tensors.POSTPROCESS_MODEL]


def config(model: str) -> pb.ModelConfig:
    return text_format.Parse((MODEL_REPOSITORY / model / "config.pbtxt").read_text(), pb.ModelConfig())


def data_type(spec: TensorSpec) -> str:
    return "TYPE_STRING" if spec.dtype == "BYTES" else f"TYPE_{spec.dtype}"


def test_the_model_repository_holds_the_models_and_nothing_else() -> None:
    """Triton polls every directory in it as a model; even a __pycache__ stops the server."""
    assert {path.name for path in MODEL_REPOSITORY.iterdir()} == set(MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_has_one_version_and_the_ensemble_an_empty_one(model: str) -> None:
    directory = MODEL_REPOSITORY / model
    assert {path.name for path in directory.iterdir()} == {"1", "config.pbtxt"}
    files = {path.name for path in (directory / "1").iterdir() if path.name != "__pycache__"}
    assert files == ({".gitkeep"} if model == tensors.ENSEMBLE_MODEL else {"model.py"})


@pytest.mark.parametrize("model", MODELS)
def test_the_command_changes_nothing(model: str) -> None:
    text = (MODEL_REPOSITORY / model / "config.pbtxt").read_text(encoding="utf-8")
    assert with_tensors(model, text) == text, "run python -m llm_pipeline.triton.config_pbtxt"


@pytest.mark.parametrize("model", MODELS)
def test_inputs_are_those_of_the_code(model: str) -> None:
    found = [(i.name, pb.DataType.Name(i.data_type), tuple(i.dims), i.optional) for i in config(model).input]
    assert found == [(spec.name, data_type(spec), spec.dims, spec.optional) for spec in MODELS[model][0]]


@pytest.mark.parametrize("model", MODELS)
def test_outputs_are_those_of_the_code(model: str) -> None:
    found = [(o.name, pb.DataType.Name(o.data_type), tuple(o.dims)) for o in config(model).output]
    assert found == [(spec.name, data_type(spec), spec.dims) for spec in MODELS[model][1]]


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_named_like_its_directory_and_takes_batches(model: str) -> None:
    assert config(model).name == model
    assert config(model).max_batch_size > 0  # so that arrays have the batch dimension that tensors.py gives them


@pytest.mark.parametrize("model", STAGES)
def test_tensors_of_any_length_may_differ_within_a_batch(model: str) -> None:
    for tensor in config(model).input:
        assert tensor.allow_ragged_batch == (tuple(tensor.dims) == (-1,)), tensor.name


@pytest.mark.parametrize(("model", "is_decoupled"), list(zip(STAGES, [False, True, False], strict=True)))
def test_decode_alone_answers_as_often_as_it_likes(model: str, is_decoupled: bool) -> None:
    assert config(model).model_transaction_policy.decoupled == is_decoupled


@pytest.mark.parametrize("model", STAGES)
def test_a_stage_has_one_instance_on_the_cpu_and_does_not_wait_for_batches(model: str) -> None:
    """With two instances of postprocess, chunks of one request would overtake each other (measured)."""
    (group,) = config(model).instance_group
    assert (group.count, group.kind) == (1, pb.ModelInstanceGroup.KIND_CPU)
    assert config(model).HasField("dynamic_batching")
    assert config(model).dynamic_batching.max_queue_delay_microseconds == 0


# --- The ensemble's maps ---------------------------------------------------------------------------------------------


# Messages to one model alone, and what it answers.
OUTSIDE_THE_ENSEMBLE = {
    tensors.STOP.name,
    tensors.RENEW.name,
    tensors.RECEIVED.name,
    tensors.PULSE.name,
    tensors.DESCRIBE.name,
    tensors.DESCRIPTION.name,
}


def steps() -> dict[str, pb.ModelEnsembling.Step]:
    return {step.model_name: step for step in config(tensors.ENSEMBLE_MODEL).ensemble_scheduling.step}


def test_the_ensemble_runs_the_three_stages_in_order() -> None:
    assert list(steps()) == STAGES


@pytest.mark.parametrize("model", STAGES)
def test_a_step_maps_every_tensor_of_its_model(model: str) -> None:
    inputs, outputs = MODELS[model]
    assert set(steps()[model].input_map) == {spec.name for spec in inputs} - OUTSIDE_THE_ENSEMBLE
    assert set(steps()[model].output_map) == {spec.name for spec in outputs} - OUTSIDE_THE_ENSEMBLE


def test_the_first_step_takes_the_ensembles_inputs_and_the_last_gives_its_outputs() -> None:
    first, last = steps()[tensors.PREPROCESS_MODEL], steps()[tensors.POSTPROCESS_MODEL]
    assert dict(first.input_map) == {spec.name: spec.name for spec in tensors.ENSEMBLE_INPUTS}
    assert dict(last.output_map) == {spec.name: spec.name for spec in tensors.ENSEMBLE_OUTPUTS}


@pytest.mark.parametrize(("giver", "taker"), list(pairwise(STAGES)))
def test_a_step_takes_exactly_what_the_one_before_gives(giver: str, taker: str) -> None:
    given, taken = steps()[giver].output_map, steps()[taker].input_map
    assert {given[name]: name for name in given} == {taken[name]: name for name in taken}


def test_names_inside_the_ensemble_hide_no_input_of_it() -> None:
    inside = {name for model in STAGES[:2] for name in steps()[model].output_map.values()}
    outside = {spec.name for spec in tensors.ENSEMBLE_INPUTS + tensors.ENSEMBLE_OUTPUTS}
    assert inside.isdisjoint(outside)


def test_no_output_of_the_ensemble_is_named_like_an_input() -> None:
    """Both are tensors of one name space in there; Triton refuses to load it when their types differ."""
    inputs, outputs = ({spec.name for spec in specs} for specs in (tensors.ENSEMBLE_INPUTS, tensors.ENSEMBLE_OUTPUTS))
    assert inputs.isdisjoint(outputs)
