"""The constraints that tensor, pipeline and expert parallelism put on the shapes of a model.

In tensorrt_llm/_torch: linear layers have equal parts; attention splits heads and replicates key and value heads
(modules/attention.py); Mamba2Mixer divides heads and groups (modules/mamba/mamba2_mixer.py), and MambaCacheManager
asserts it; moe_tp_size x moe_ep_size is tp_size (mapping.py). Layers need not divide: `pp_layers` in mapping.py is
torch.tensor_split. Nor does the vocabulary, which LMHead pads (modules/embedding.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from build_engine.gpu.planning.wording import choose
from build_engine.pytorch.checkpoint.decoder import (
    Attention,
    Decoder,
    DeltaNet,
    Experts,
    FeedForward,
    LatentAttention,
    Mamba2,
    Mixer,
)
from build_engine.pytorch.planning.formats import WeightFormat
from build_engine.pytorch.planning.parameters import Part, Split, layer_matrices
from build_engine.pytorch.planning.plan import PyTorchSpec

_MAX_SUGGESTED_TP = 32


def check_parallelism(spec: PyTorchSpec) -> Iterator[str]:
    decoder = spec.model.decoder
    if decoder is None:
        return
    split = Split(spec.tp, spec.ep)
    problems = list(_split_problems(decoder, split))
    if problems:
        valid = [tp for tp in range(1, _MAX_SUGGESTED_TP + 1) if not list(_split_problems(decoder, Split(tp, 1)))]
        for problem in problems:
            yield f"{problem}. {choose('--tp', valid)}"
    if spec.pp > len(decoder.layers):
        yield f"pp {spec.pp} exceeds the {len(decoder.layers)} layers. Choose --pp {len(decoder.layers)} or less."
    yield from _check_expert_parallelism(spec, decoder)
    if not problems and spec.tp % spec.ep == 0:
        yield from _check_groups(decoder, spec.format, split)


def _check_expert_parallelism(spec: PyTorchSpec, decoder: Decoder) -> Iterator[str]:
    if spec.ep == 1:
        return
    if not decoder.experts:
        yield f"ep {spec.ep} shares out experts, and {spec.model.name} has no experts. Choose --ep 1."
        return
    valid = [ep for ep in range(1, spec.tp + 1) if spec.tp % ep == 0 and decoder.experts % ep == 0]
    if spec.tp % spec.ep:
        yield f"ep {spec.ep} does not divide tp {spec.tp}. {choose('--ep', valid)}"
    elif decoder.experts % spec.ep:
        yield f"{decoder.experts} experts can't be shared out evenly over ep {spec.ep}. {choose('--ep', valid)}"


def _split_problems(decoder: Decoder, split: Split) -> Iterator[str]:
    """One problem for each kind of layer."""
    seen: set[str] = set()
    for layer in decoder.layers:
        found: list[str] = []
        if layer.mixer is not None:
            found += _mixer_problems(layer.mixer, split.tp)
        if layer.feed_forward is not None:
            found += _feed_forward_problems(layer.feed_forward, split)
        for problem in found:
            if problem not in seen:
                seen.add(problem)
                yield problem


def _mixer_problems(mixer: Mixer, tp: int) -> Iterator[str]:
    if isinstance(mixer, Attention | LatentAttention):
        if mixer.heads % tp:
            yield f"{mixer.heads} attention heads are not divisible by tp {tp}"
        if isinstance(mixer, Attention) and mixer.kv_heads % tp and tp % mixer.kv_heads:
            yield f"{mixer.kv_heads} key/value heads can be neither split nor replicated evenly over tp {tp}"
    elif isinstance(mixer, DeltaNet):
        if mixer.value_heads % tp or mixer.key_heads % tp:
            yield (
                f"{mixer.key_heads} key and {mixer.value_heads} value heads of linear attention are not divisible by "
                f"tp {tp}"
            )
    elif isinstance(mixer, Mamba2) and (mixer.heads % tp or mixer.groups % tp):
        yield f"{mixer.heads} Mamba heads in {mixer.groups} groups are not divisible by tp {tp}"


def _feed_forward_problems(part: FeedForward, split: Split) -> Iterator[str]:
    if isinstance(part, Experts):
        expert_tp = split.expert_tp
        if part.inner % expert_tp:
            yield f"The {part.inner} intermediate values of an expert are not divisible by tp / ep = {expert_tp}"
        if part.shared_inner % split.tp:
            yield f"The {part.shared_inner} intermediate values of shared experts are not divisible by tp {split.tp}"
    elif part.inner % split.tp:
        yield f"The MLP's {part.inner} intermediate values are not divisible by tp {split.tp}"


def _check_groups(decoder: Decoder, weights: WeightFormat, split: Split) -> Iterator[str]:
    """Kernels that scale groups of inputs need complete groups on each GPU."""
    multiple = weights.input_multiple
    for layer in dict.fromkeys(decoder.layers):
        for matrix in layer_matrices(layer, decoder.hidden_size, split):
            is_scaled = matrix.part is Part.EXPERT or (matrix.part is Part.LINEAR and not weights.experts_only)
            if is_scaled and matrix.inputs % multiple:
                yield (
                    f"{weights.name} needs a multiple of {multiple} inputs in every matrix on a GPU; {matrix.name!r} "
                    f"has {matrix.inputs} at tp {split.tp}, ep {split.ep}. Choose a lower --tp"
                    f"{' or a higher --ep' if matrix.part is Part.EXPERT else ''}."
                )
                return
