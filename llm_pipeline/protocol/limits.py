"""Bounds on what a request may hold: the front end refuses with them early, preprocess refuses for everybody else."""

from __future__ import annotations

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
MAX_TEMPERATURE = 2.0
INT32_MAX = 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

MAX_LOG_PROBS = 20  # most likely tokens told for each place
MIN_FACTOR, MAX_FACTOR = 0.01, 100.0  # repetition penalty; far outside, logits are no float32 any more
MAX_PENALTY = 2.0  # presence and frequency, both ways
MAX_BIAS = 100.0  # of one token, both ways
MAX_BIASED_TOKENS = 1024
MAX_BAD_WORDS = 64
MAX_BAD_WORD_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_GUIDE_CHARACTERS = 64 * 1024  # of a JSON schema, a regular expression or a grammar
MAX_GUIDE_RULES = 512  # of a grammar; definitions that a JSON schema refers to
MAX_CHOICES_OF_GUIDE = 1024
