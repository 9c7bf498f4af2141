"""What the stand-in does: the machine it pretends to be, its pace, and rules for single prompts.

Read from the JSON file that the environment variable FAKE_TENSORRT_LLM names; without one, the defaults stand.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Rule:
    """How prompts with these ids, or that begin with them when `is_prefix`, are answered.

    `token_ids` then `finish` (a FinishReason; None: the engine goes on by itself); or `error` in place of the finish;
    `enqueue_error` is raised by enqueue; `death` is raised by every await from then on; `stalls` makes nothing more
    until it is cancelled, and `ignores_cancel` not even then. `burst` tokens come in each response. `breaks` gives a
    response whose result can't be read.
    """

    prompt_ids: list[int]
    is_prefix: bool = False
    token_ids: list[int] = field(default_factory=list)
    finish: str | None = None
    error: str | None = None
    enqueue_error: str | None = None
    death: str | None = None
    stalls: bool = False
    ignores_cancel: bool = False
    breaks: bool = False
    burst: int = 1


@dataclass(frozen=True)
class Script:
    version: str = "1.2.1"
    sms: list[int] = field(default_factory=lambda: [90])
    is_leader: bool = True
    steps_per_s: float = 200.0
    burst: int = 1
    has_empty_final: bool = False  # the last response then comes by itself, without tokens
    repeats_log_probs: bool = False  # each response holds those of all tokens so far
    shutdown_s: float = 0.0  # how long shutdown takes; on other ranks than the leader's, always until `release`
    rules: list[Rule] = field(default_factory=list)

    def rule_for(self, prompt_ids: list[int]) -> Rule | None:
        for rule in self.rules:
            beginning = prompt_ids[: len(rule.prompt_ids)] if rule.is_prefix else prompt_ids
            if beginning == rule.prompt_ids:
                return rule
        return None


def read_script() -> Script:
    path = os.environ.get("FAKE_TENSORRT_LLM")
    if not path:
        return Script()
    values = json.loads(Path(path).read_bytes())
    values["rules"] = [Rule(**rule) for rule in values.get("rules", [])]
    return Script(**values)
