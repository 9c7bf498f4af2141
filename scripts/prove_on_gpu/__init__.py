"""Checks on a GPU machine what could not be checked without one, and writes a report: `scripts/prove-on-gpu --help`.

Each step is a module of `steps` with a function `run(context)`. Whatever may hang or crash (the driver, torch,
TensorRT-LLM, a build, a server) runs in a process of its own with a time limit, so that a step that fails leaves the
others to go on.
"""
