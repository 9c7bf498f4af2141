"""Engines for NVIDIA GPUs. All that can be worked out without a GPU is pure: the same input gives the same plan.

    gpus          the GPUs by name; nvml asks the machine instead (the only module that knows `pynvml`)
    precisions    what weights and KV cache can be stored in, and where that runs
    model_config  reads a model's config.json
    parameters    the matrices of a model, and how many of each one GPU holds
    combination   a model, a GPU, a precision, parallelism and limits, every `auto` resolved
    memory        bytes on each GPU; assumptions has what it takes for granted
    refusals      why a combination can't be built
    commands      the command lines
    plan          all of these together; plan_output shows it, plan_table writes docs/engine-plans.md
    convert       the first step's command; upstream is the only module that imports TensorRT-LLM
    calibration   the text that quantisers take scales from
    run           runs a plan's steps where TensorRT-LLM is; gpu_manifest writes down what came of it
    timing_cache  shares TensorRT's kernel timings between builds
    load_test     loads an engine and lets it generate
    config_checks compares upstream's config.json with the manifest
    gpu_verify    loads an engine on its target; generate asks it in a process of its own; accuracy judges

Not run: no machine with TensorRT-LLM was at hand. What is said about it comes from its sources, versions 1.0 to 1.2.
"""
