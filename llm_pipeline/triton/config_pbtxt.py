"""Writes the tensors of the models into their config.pbtxt: `python -m llm_pipeline.triton.config_pbtxt`.

Everything else in these files is written by hand: only the lists `input [...]` and `output [...]`, and the ensemble's
input_map for preprocess and output_map for postprocess, are replaced.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from llm_pipeline.protocol import tensors
from llm_pipeline.protocol.arrays import TensorSpec

_MODELS = {
    tensors.PREPROCESS_MODEL: (tensors.PREPROCESS_INPUTS, tensors.PREPROCESS_OUTPUTS),
    tensors.DECODE_MODEL: (tensors.DECODE_INPUTS, tensors.DECODE_OUTPUTS),
    tensors.POSTPROCESS_MODEL: (tensors.POSTPROCESS_INPUTS, tensors.POSTPROCESS_OUTPUTS),
    tensors.ENSEMBLE_MODEL: (tensors.ENSEMBLE_INPUTS, tensors.ENSEMBLE_OUTPUTS),
}


def with_tensors(model: str, config: str) -> str:
    """The text of a model's config.pbtxt with its current tensors."""
    inputs, outputs = _MODELS[model]
    is_ensemble = model == tensors.ENSEMBLE_MODEL
    config = _with_list(config, "input", [_input(spec, is_ensemble=is_ensemble) for spec in inputs])
    config = _with_list(config, "output", [f"{{ {_head(spec)} }}" for spec in outputs])
    if is_ensemble:
        config = _with_maps(config, "input_map", tensors.PREPROCESS_MODEL, inputs)
        config = _with_maps(config, "output_map", tensors.POSTPROCESS_MODEL, outputs)
    return config


def _head(spec: TensorSpec) -> str:
    data_type = "STRING" if spec.dtype == "BYTES" else spec.dtype
    return f'name: "{spec.name}" data_type: TYPE_{data_type} dims: [ {", ".join(map(str, spec.dims))} ]'


def _input(spec: TensorSpec, *, is_ensemble: bool) -> str:
    optional = " optional: true" if spec.optional else ""
    # Requests of one batch may differ in the length of these. An ensemble makes no batches.
    ragged = " allow_ragged_batch: true" if spec.dims == (-1,) and not is_ensemble else ""
    return f"{{ {_head(spec)}{optional}{ragged} }}"


def _with_list(config: str, name: str, items: Sequence[str]) -> str:
    lines = ",\n".join(f"  {item}" for item in items)
    return _replaced(config, rf"(?ms)^{name} \[\n.*?^\]\n", f"{name} [\n{lines}\n]\n")


def _with_maps(config: str, name: str, step: str, specs: Sequence[TensorSpec]) -> str:
    """The map of one step: the ensemble's tensors have the names of the step's."""
    lines = "".join(f'      {name} {{ key: "{spec.name}" value: "{spec.name}" }}\n' for spec in specs)
    pattern = rf'(model_name: "{step}"\n(?: +(?!{name})[^\n]+\n)*?)(?: +{name} [^\n]+\n)+'
    return _replaced(config, pattern, rf"\g<1>{lines}")


def _replaced(config: str, pattern: str, replacement: str) -> str:
    config, count = re.subn(pattern, replacement, config)
    if count != 1:
        raise ValueError(f"{count} matches for {pattern!r}; expected one")
    return config


def main(repository: Path) -> None:
    for model in _MODELS:
        path = repository / model / "config.pbtxt"
        path.write_text(with_tensors(model, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "model_repository"))
