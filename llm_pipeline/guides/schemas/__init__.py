"""Rewrites JSON schemas to the keywords that the compilers follow. Runs in the guide's process, within its limits."""
