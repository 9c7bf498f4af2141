"""Script of the fake: the machine that it simulates, its pace, and rules for single prompts.

Read from the JSON file that the environment variable FAKE_TENSORRT_LLM names; without it, the defaults apply.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Rule:
    """Completion of prompts that equal `prompt_ids`, or begin with them if `is_prefix`.

    `token_ids`, then `finish` (a FinishReason; None: the engine continues by itself), or `error` instead of a finish.
    `enqueue_error` is raised by enqueue; `death` is raised by every await from then on. `stalls` sends nothing more
    until the request is cancelled, and `ignores_cancel` not even then. Each response contains `burst` tokens. `breaks`
    sends a response whose result can't be read. `step_error` fails the step of all running requests; then, with
    `aborts`, the next one ends the process (the LLM API's: the worker's) with SIGABRT. In the LLM API's stand-in,
    `death` fails every active request in this and all later steps. `kills_worker` kills the process of that rank, and
    `hangs_engine` ends the worker's loop: nothing comes after either.
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
    step_error: str | None = None
    aborts: bool = False
    burst: int = 1
    kills_worker: int | None = None
    hangs_engine: bool = False


@dataclass(frozen=True)
class Script:
    """Behavior of the fake. `stats` is "normal", "none" (no iteration is reported) or "unreadable"."""

    version: str = "1.2.1"
    sms: list[int] = field(default_factory=lambda: [90])
    is_leader: bool = True
    steps_per_s: float = 200.0
    kv_block_tokens: int = 32
    burst: int = 1
    has_empty_final: bool = False  # the last response is then separate, without tokens
    repeats_log_probs: bool = False  # each response has those of all tokens so far
    stats: str = "normal"
    shutdown_s: float = 0.0  # duration of shutdown; on other ranks than the leader's, until tests release it
    load_s: float = 0.0  # duration of LLM's constructor
    ranks_outlive: bool = False  # spawned ranks are stuck: they end by SIGKILL alone
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
