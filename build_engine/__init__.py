"""Turns a model file into an engine directory that the server loads. Start with `python -m build_engine --help`.

    cli       the program; cli_build, cli_fleet and cli_verify are its commands. Only these write to the terminal
    targets   what an engine can be built for
    build     the steps of a build, in order; engine_dir makes the result appear whole or not at all
    source    reads and dequantises GGUF (the only module that knows `gguf`)
    verify    checks a finished engine directory
    fleet     many engines from one file
    gpu       engines for NVIDIA GPUs: plans, and their builds through TensorRT-LLM

    cpu_weights, drift    the tensors of an engine for CPUs, and what int8 costs; cpu_greedy runs one

A heavy library is imported by the step that needs it, so `--help` and `inspect` work without.
"""
