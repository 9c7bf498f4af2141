"""Model directories for plans of the PyTorch runtime: published shapes, requests, and weights that are only headers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from build_engine.gpu.planning.options import GpuOptions
from build_engine.pytorch.checkpoint.decoder import Decoder
from build_engine.pytorch.checkpoint.model_directory import ModelDirectory, read_model_directory
from build_engine.pytorch.planning.plan import PyTorchMemory, PyTorchPlan
from build_engine.pytorch.planning.planner import PyTorchRequest, plan_model
from build_engine.targets.gpus import GPUS
from build_engine.targets.precisions import KvPrecisionName

DATA = Path(__file__).parents[1] / "data"
CONFIGS = {
    path.name: path
    for folder in ("model_configs", "pytorch_model_configs")
    for path in sorted((DATA / folder).iterdir())
    if path.is_dir()
}
MODELS = {name: read_model_directory(path) for name, path in CONFIGS.items()}
_TYPE_BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]  # type and shape by name


def pytorch_request(
    model: str | ModelDirectory = "llama-3.1-8b",
    target: str = "h100",
    *,
    precision: str | None = None,
    gpu_count: int | None = None,
    kv: str = "auto",
    tensorrt_llm: str = "1.3.0",
    **options: Any,
) -> PyTorchRequest:
    """`options` are fields of GpuOptions; `kv` is its kv_cache_precision."""
    directory = MODELS[model] if isinstance(model, str) else model
    gpu_options = GpuOptions(kv_cache_precision=KvPrecisionName(kv), tensorrt_llm=tensorrt_llm, **options)
    return PyTorchRequest(directory, GPUS[target], gpu_count, precision, gpu_options)


def pytorch_plan(model: str | ModelDirectory = "llama-3.1-8b", target: str = "h100", **options: Any) -> PyTorchPlan:
    return plan_model(pytorch_request(model, target, **options))


def memory_of(model: str | ModelDirectory = "llama-3.1-8b", target: str = "b300", **options: Any) -> PyTorchMemory:
    """The memory of a plan on a GPU with room for most models."""
    memory = pytorch_plan(model, target, **options).memory
    assert memory is not None
    return memory


def decoder_of(name: str) -> Decoder:
    decoder = MODELS[name].decoder
    assert decoder is not None
    return decoder


@st.composite
def pytorch_requests(draw: st.DrawFn) -> PyTorchRequest:
    limit = st.none() | st.integers(1, 300)
    return pytorch_request(
        draw(st.sampled_from(sorted(MODELS))),
        draw(st.sampled_from(sorted(GPUS))),
        kv=draw(st.sampled_from(["auto", "fp16", "fp8", "int8"])),
        tp=draw(st.sampled_from([1, 2, 3, 4, 8, 16])),
        pp=draw(st.sampled_from([1, 2, 3, 8])),
        ep=draw(st.sampled_from([1, 2, 3, 8])),
        max_batch_size=draw(limit),
        max_seq_len=draw(st.none() | st.integers(1, 300_000)),
        max_num_tokens=draw(st.none() | st.integers(1, 32_768)),
        tensorrt_llm=draw(st.sampled_from(["1.1.0", "1.2.1", "1.3.0rc26", "1.4.0", "2.0"])),
    )


def write_model(path: Path, config: Mapping[str, Any], tensors: Tensors | None = None, shards: int = 1) -> Path:
    """A model directory. Its weights have headers and the right length; the values are a hole in the file."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if tensors is None:
        return path
    if shards == 1:
        write_headers(path / "model.safetensors", tensors)
        return path
    names = sorted(tensors)
    files = {f"model-{number + 1:05}-of-{shards:05}.safetensors": names[number::shards] for number in range(shards)}
    for file, members in files.items():
        write_headers(path / file, {name: tensors[name] for name in members})
    weight_map = {name: file for file, members in files.items() for name in members}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


def write_headers(path: Path, tensors: Tensors) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for name, (type_name, shape) in tensors.items():
        size = _TYPE_BYTES[type_name]
        for length in shape:
            size *= length
        header[name] = {"dtype": type_name, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    content = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + offset)


def tiny_config(architecture: str, **values: Any) -> dict[str, Any]:
    """config.json of a small model that splits into two and four parts."""
    return {
        "architectures": [architecture],
        "torch_dtype": "bfloat16",
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        **values,
    }


def dense_tensors(config: Mapping[str, Any], prefix: str = "model.") -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of a Llama-like model, as transformers names them."""
    hidden, inner, vocabulary = (config[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embed_tokens.weight": (vocabulary, hidden),
        f"{prefix}norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"{prefix}layers.{number}."
        shapes |= {f"{layer}{name}.weight": shape for name, shape in _attention_shapes(config)}
        shapes |= {
            f"{layer}mlp.gate_proj.weight": (inner, hidden),
            f"{layer}mlp.up_proj.weight": (inner, hidden),
            f"{layer}mlp.down_proj.weight": (hidden, inner),
        }
    return {name: ("BF16", shape) for name, shape in shapes.items()}


def _attention_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = config["hidden_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    yield "self_attn.q_proj", (query, hidden)
    yield "self_attn.k_proj", (kv, hidden)
    yield "self_attn.v_proj", (kv, hidden)
    yield "self_attn.o_proj", (hidden, query)
    yield "input_layernorm", (hidden,)
    yield "post_attention_layernorm", (hidden,)
