"""The input of every script here (a base URL, a key, a model) and its output (one line of JSON)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping

BASE_URL = os.environ["CLIENT_BASE_URL"]  # http://host:port/openai/v1
API_KEY = os.environ["CLIENT_API_KEY"]
MODEL = os.environ["CLIENT_MODEL"]
PROMPT = "The capital of France is"


def report(found: Mapping[str, object]) -> None:
    """Prints the results of the client as the last line of standard output."""
    sys.stdout.write("\n" + json.dumps(found) + "\n")
