"""Writes the table of what each runtime of TensorRT-LLM honors into docs/tensorrt-llm.md.

python -m scripts.capability_tables          writes it
python -m scripts.capability_tables --check  exit status 1 if the page has another one
"""

from __future__ import annotations

import sys
from pathlib import Path

from llm_pipeline.protocol.capabilities import CAPABILITIES, PYTORCH_CAPABILITIES, Capabilities, PyTorchProfile
from llm_pipeline.protocol.fields import SAMPLING_EXTENSIONS
from llm_pipeline.protocol.messages import GuideType

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tensorrt-llm.md"
_BEGIN, _END = "<!-- capabilities: python -m scripts.capability_tables -->\n", "<!-- end of capabilities -->\n"
# In the order of the columns.
PROFILES: dict[str, Capabilities] = {
    "CPU engine": CAPABILITIES["cpu"],
    "engine runtime, 1.1 to 1.2.1": CAPABILITIES["tensorrt_llm"],
    "PyTorch runtime, 1.2.1": PYTORCH_CAPABILITIES[PyTorchProfile.V1_2],
    "PyTorch runtime, 1.3.0rc26 to 1.4": PYTORCH_CAPABILITIES[PyTorchProfile.V1_3],
}


def capability_table() -> str:
    """Returns the table as Markdown: a row for each field that an executor may lack.

    `time_limit` is left out: no request field sets it.
    """
    rows = [
        *((f"`{name}`", [_yes(name in item.sampling) for item in PROFILES.values()]) for name in SAMPLING_EXTENSIONS),
        ("`priority`", [_yes(item.priority) for item in PROFILES.values()]),
        ("`logprobs`", [_logprobs(item.logprobs) for item in PROFILES.values()]),
        ("`echo` with `logprobs`", [_yes(item.prompt_logprobs) for item in PROFILES.values()]),
        *((f"guide: {kind}", [_yes(kind in item.guides) for item in PROFILES.values()]) for kind in GuideType),
        ("LoRA adapters", [_yes(item.lora) for item in PROFILES.values()]),
    ]
    lines = ["| field | " + " | ".join(PROFILES) + " |", "| --- |" + " --- |" * len(PROFILES)]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows]
    return "\n".join(lines) + "\n"


def _yes(is_honored: bool) -> str:
    return "yes" if is_honored else "400"


def _logprobs(most: int | None) -> str:
    if most is None:
        return "400"
    return f"up to {most}" if most else "0: the chosen token's"


def page_with_table(page: str) -> str:
    """Returns the page with the current table between its two markers."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{capability_table()}\n{_END}{after}"


def main(arguments: list[str]) -> int:
    """Runs the program and returns its exit status."""
    page = PAGE.read_text(encoding="utf-8")
    current = page_with_table(page)
    if "--check" in arguments:
        return 0 if page == current else 1
    PAGE.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
