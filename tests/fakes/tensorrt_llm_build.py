"""Stand-ins for TensorRT-LLM: a trtllm-build script on PATH, and packages on PYTHONPATH, both for child processes.

They accept only the keywords that upstream has (tests/data/tensorrt_llm_build_api.json), so they show that our side is
consistent. Only a GPU can show whether upstream behaves as its sources say. The fake model
continues a prompt by counting up from its last token.

FAKE_BUILD_FAILS          trtllm-build fails; other values than 1: only for engines whose path contains the value
FAKE_BATCH                trtllm-build writes this max_batch_size instead of the requested one
FAKE_ENGINE_DIFFERS_FROM  the engine's tokens are wrong from this position on, its probabilities lower
FAKE_ENGINE_FAILS         the engine does not load
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from build_engine.targets.nvml import NvmlGpu
from tests.support.plan_requests import CONFIGS
from tests.support.tiny_models import MERGES

API = json.loads((Path(__file__).parents[1] / "data" / "tensorrt_llm_build_api.json").read_text())
VERSION = "1.2.1"
H100 = NvmlGpu("NVIDIA H100 80GB HBM3", 90, 81_559 << 20)

_BUILDER = """#!/usr/bin/env python3
import json, os, pathlib, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
unknown = {name.removeprefix("--") for name in options} - set(FLAGS)
if unknown:
    sys.exit(f"unknown flags {unknown}")
fails = os.environ.get("FAKE_BUILD_FAILS")
if fails and (fails == "1" or fails in options["--output_dir"]):
    sys.exit("out of memory (fake)")
checkpoint = pathlib.Path(options["--checkpoint_dir"])
ranks = len(list(checkpoint.glob("rank*.safetensors")))
engine = pathlib.Path(options["--output_dir"])
engine.mkdir(parents=True, exist_ok=True)
for rank in range(ranks):
    (engine / f"rank{rank}.engine").write_text(f"engine {rank}")
limits = {name: int(options[f"--{name}"]) for name in ("max_batch_size", "max_seq_len", "max_num_tokens")}
if "FAKE_BATCH" in os.environ:
    limits["max_batch_size"] = int(os.environ["FAKE_BATCH"])
plugins = {"use_paged_context_fmha": options["--use_paged_context_fmha"] == "enable"}
(engine / "config.json").write_text(json.dumps({
    "version": "1.2.1",
    "pretrained_config": json.loads((checkpoint / "config.json").read_text()),
    "build_config": {**limits, "plugin_config": plugins},
}))
timings = pathlib.Path(options["--input_timing_cache"])
known = timings.read_text() if timings.exists() else ""
pathlib.Path(options["--output_timing_cache"]).write_text(known + "timed\\n")
print(f"built {ranks} ranks")
"""
_TENSORRT_LLM = """
import json, math, os, pathlib
from types import SimpleNamespace
__version__ = "1.2.1"
print("[TensorRT-LLM] a banner")
def only(known, keywords):
    assert set(keywords) <= set(known), set(keywords) - set(known)
    return SimpleNamespace(**keywords)
def Mapping(**keywords): return vars(only(MAPPING, keywords))
def SamplingParams(**keywords): return only(SAMPLING, keywords)
def write_checkpoint(output, path, tp, pp, kv, ranks):
    for rank in ranks:
        (pathlib.Path(output) / f"rank{rank}.safetensors").write_text("weights")
    vocab = json.loads((pathlib.Path(path) / "config.json").read_text())["vocab_size"]
    config = {"vocab_size": vocab, "mapping": {"tp_size": tp, "pp_size": pp}}
    config["quantization"] = {"kv_cache_quant_algo": kv}
    (pathlib.Path(output) / "config.json").write_text(json.dumps(config))
class Model:
    def __init__(self, path, mapping): self.path, self.mapping = path, mapping
    def save_checkpoint(self, output, save_config=True):
        tp, pp = self.mapping["tp_size"], self.mapping["pp_size"]
        write_checkpoint(output, self.path, tp, pp, None, [self.mapping["rank"]])
class AutoModelForCausalLM:
    @staticmethod
    def from_hugging_face(path, mapping, **keywords):
        print("converting rank", mapping["rank"])
        return Model(path, mapping)
class Logits:
    "One token stands out by `bias`; all others are 0."
    def __init__(self, token, bias, size): self.token, self.bias, self.size = token, bias, size
    def float(self): return self
    def flatten(self): return self
    def log_softmax(self, axis): return self
    def __getitem__(self, token):
        whole = math.log(math.exp(self.bias) + self.size - 1)
        return (self.bias if token == self.token else 0.0) - whole
class LLM:
    is_engine = False
    def __init__(self, **keywords):
        only(LLM_KEYWORDS, keywords)
        config = json.loads((pathlib.Path(keywords["model"]) / "config.json").read_text())
        self.vocab = config["pretrained_config"]["vocab_size"] if self.is_engine else config["vocab_size"]
        self.has_logits = keywords.get("gather_generation_logits", False)
        wrong = os.environ.get("FAKE_ENGINE_DIFFERS_FROM")
        self.wrong_from = int(wrong) if wrong and self.is_engine else None
    def generate(self, prompts, params, use_tqdm=True):
        return [SimpleNamespace(outputs=[self.complete(prompt, params)]) for prompt in prompts]
    def complete(self, prompt, params):
        tokens = [(prompt[-1] + 1 + index) % self.vocab for index in range(params.max_tokens)]
        logits = None
        if self.wrong_from is not None:
            tokens = [token if i < self.wrong_from else (token + 1) % self.vocab for i, token in enumerate(tokens)]
        if self.has_logits and getattr(params, "return_generation_logits", False):
            logits = Logits(tokens[0], 1.0 if self.wrong_from is None else 12.0, self.vocab)
        return SimpleNamespace(token_ids=tokens, generation_logits=logits)
    def shutdown(self): pass
"""
_ENGINE = """
import os
import tensorrt_llm
class LLM(tensorrt_llm.LLM):
    is_engine = True
    def __init__(self, **keywords):
        if os.environ.get("FAKE_ENGINE_FAILS"):
            raise RuntimeError("no deserializer (fake)")
        super().__init__(**keywords)
"""
_QUANTIZATION = """
import pathlib
import tensorrt_llm
QuantAlgo = {"W8A16": "W8A16"}
def quantize_and_export(**keywords):
    options = tensorrt_llm.only(QUANTIZE, keywords)
    print("calibrating on", options.calib_dataset, "with", options.calib_size)
    pathlib.Path(options.output_dir).mkdir(parents=True, exist_ok=True)
    kv = options.kv_cache_dtype.upper() if options.kv_cache_dtype else None
    ranks = range(options.tp_size * options.pp_size)
    tensorrt_llm.write_checkpoint(options.output_dir, options.model_dir, options.tp_size, options.pp_size, kv, ranks)
"""


@dataclass(frozen=True)
class FakeNvml:
    """A driver that reports these GPUs."""

    devices: tuple[NvmlGpu, ...] = (H100,) * 3

    def gpus(self) -> list[NvmlGpu]:
        return list(self.devices)

    def driver_version(self) -> str:
        return "590.44.01"

    def cuda_version(self) -> str:
        return "13.1"


def install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs the stand-ins below `directory`: child processes can run them, and this process can import them."""
    sources = {
        "tensorrt/__init__.py": '__version__ = "10.14.1.48"\n',
        "tensorrt_llm/__init__.py": _with(
            _TENSORRT_LLM,
            MAPPING=API["Mapping"]["keywords"],
            SAMPLING=API["SamplingParams"]["keywords"],
            LLM_KEYWORDS=API["LLM"]["keywords"],
        ),
        "tensorrt_llm/_tensorrt_engine.py": _ENGINE,
        "tensorrt_llm/llmapi.py": "def QuantConfig(**keywords): return keywords\n",
        "tensorrt_llm/quantization.py": _with(_QUANTIZATION, QUANTIZE=API["quantize_and_export"]["keywords"]),
    }
    for name, content in sources.items():
        path = directory / "upstream" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    script = directory / "bin" / "trtllm-build"
    script.parent.mkdir()
    script.write_text(_BUILDER.replace("FLAGS", repr(API["trtllm-build"]["flags"])))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(directory / "upstream"))
    monkeypatch.syspath_prepend(str(directory / "upstream"))


def uninstall(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo `install` for the program and the packages: neither this process nor a child finds TensorRT-LLM."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(directory / "upstream")])
    monkeypatch.delenv("PYTHONPATH")
    entries = os.environ["PATH"].split(os.pathsep)
    monkeypatch.setenv("PATH", os.pathsep.join(entry for entry in entries if entry != str(directory / "bin")))


def _with(source: str, **constants: list[str]) -> str:
    return "".join(f"{name} = {value!r}\n" for name, value in constants.items()) + source


def write_model(directory: Path, weights: str = "weights") -> Path:
    """The parts of a Hugging Face directory that a build reads: SmolLM2's configuration and a byte-level tokenizer."""
    directory.mkdir(parents=True)
    config = json.loads((CONFIGS / "smollm2-135m" / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"bos_token_id": 1, "eos_token_id": 2}))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    (directory / "model.safetensors").write_text(weights)
    merged = [merge.replace(" ", "") for merge in MERGES]
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *merged]
    pairs = [tuple(merge.split(" ")) for merge in MERGES]
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(vocabulary)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory
