"""Architectures of the CPU engine's graph, and the names of a model's parts, which both file formats are mapped to.

A part is one tensor of a model as trained, `NAME.weight` or `NAME.bias`: `embedding`, `norm`, `vocabulary`, and for
each layer `layers.N.` with a name of LAYER_NORMS, OPTIONAL_NORMS or LAYER_MATRICES. weights.py joins them to the
engine's tensors.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from build_engine.errors import EngineRefusedError

LAYER_NORMS = ("attention_norm", "mlp_norm")
OPTIONAL_NORMS = ("attention_post_norm", "mlp_post_norm", "query_norm", "key_norm")
LAYER_MATRICES = ("query", "key", "value", "attention_output", "gate", "up", "down")


@dataclass(frozen=True)
class Architecture:
    """An architecture by its names in both formats."""

    name: str  # `general.architecture` in a GGUF file
    class_name: str  # in `architectures` of a Hugging Face config.json
    norms: frozenset[str] = frozenset()  # of OPTIONAL_NORMS; every layer has them
    required_biases: frozenset[str] = frozenset()  # of LAYER_MATRICES; others may have a bias

    def layer_parts(self) -> frozenset[str]:
        """Names of all parts that a layer may have, without `layers.N.`."""
        weights = {f"{name}.weight" for name in (*LAYER_NORMS, *self.norms, *LAYER_MATRICES)}
        return frozenset(weights | {f"{name}.bias" for name in LAYER_MATRICES})

    def required_layer_parts(self) -> frozenset[str]:
        """Names of the parts that each layer must have, without `layers.N.`."""
        biases = {f"{name}.bias" for name in LAYER_MATRICES if name not in self.required_biases}
        return self.layer_parts() - biases


_QUERY_KEY_NORMS = frozenset({"query_norm", "key_norm"})
ARCHITECTURES = (
    Architecture("llama", "LlamaForCausalLM"),
    Architecture("llama", "MistralForCausalLM"),
    Architecture("qwen2", "Qwen2ForCausalLM", required_biases=frozenset({"query", "key", "value"})),
    Architecture("qwen3", "Qwen3ForCausalLM", norms=_QUERY_KEY_NORMS),
    Architecture("gemma3", "Gemma3ForCausalLM", norms=frozenset(OPTIONAL_NORMS)),
)


def missing_parts(architecture: Architecture, layers: int, parts: Collection[str]) -> list[str]:
    """Names of required parts that are not in `parts`, in the order of the layers."""
    names = ["embedding.weight", "norm.weight"]
    for number in range(layers):
        names += [f"layers.{number}.{part}" for part in sorted(architecture.required_layer_parts())]
    return [name for name in names if name not in parts]


def find_by_gguf_name(name: str) -> Architecture:
    """Raises EngineRefusedError with the supported names."""
    for architecture in ARCHITECTURES:
        if architecture.name == name:
            return architecture
    known = ", ".join(dict.fromkeys(architecture.name for architecture in ARCHITECTURES))
    raise EngineRefusedError(
        f"architecture {name!r} is not supported on CPUs. "
        f"Use a model of {known} (llama includes SmolLM, Mistral and TinyLlama)."
    )


def find_by_class_name(name: str) -> Architecture:
    """Raises EngineRefusedError with the supported names."""
    for architecture in ARCHITECTURES:
        if architecture.class_name == name:
            return architecture
    known = ", ".join(architecture.class_name for architecture in ARCHITECTURES)
    raise EngineRefusedError(f"architecture {name!r} is not supported on CPUs. Use a model of {known}.")
