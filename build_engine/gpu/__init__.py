"""Engines for NVIDIA GPUs. Everything that can be computed without a GPU is pure: the same input gives the same plan.

    planning/
      model_config   reads a model's config.json
      parameters     the matrices of a model, and the part of them on one GPU
      options        the command line options of a GPU engine
      plan_request   resolves a target and options into the planner's request
      spec           a model, a GPU, a precision, parallelism and limits, with every `auto` resolved
      memory         bytes on each GPU; memory_model has the assumed constants
      constraints    the reasons why a spec can't be built
      calibration    the data that quantization scales are computed from
      commands       the command lines
      planner        all of these together; plan_json exports a plan
    trtllm           every call into TensorRT-LLM that engines need; with pytorch/trtllm the only module that imports it
    child_process    calls a module in a process of its own, and ends that with all of its ranks
    installation     finds TensorRT-LLM and its versions
    model_files      hashes a model and reads its special token ids
    verification/    config_checks, smoke_test, accuracy and target_checks; generate runs an engine in a child process
    building/        run executes the steps of a plan; convert is the first one; timing_cache and manifest

Not run on TensorRT-LLM: no machine with it was available. Statements about it come from its sources, 1.1 and 1.2.
"""
