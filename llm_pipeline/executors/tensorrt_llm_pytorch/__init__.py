"""The executor on TensorRT-LLM's LLM API, which loads a model directory. NOT RUN on TensorRT-LLM: docs/tensorrt-llm.md
lists what is proved and what is not.

The executor itself is its sibling's (executors/tensorrt_llm/executor.py); this folder is another engine for it.

load.py                  reads and checks the model directory, then creates the executor
compatibility.py         checks model directory, machine and settings against each other; derives the LLM's options
adapters.py              checks the directories of LoRA adapters
options.py               the options of the LLM, in our own terms
sampling_arguments.py    a request's sampling params -> arguments of upstream's SamplingParams
ranks.py                 finds dead processes of spawned ranks
engine.py                an Engine over the LLM: one event loop in a thread of its own
outputs.py               upstream's results -> responses of the engine
error_classification.py  error texts of upstream -> kinds of failure
bindings.py              every call into tensorrt_llm, torch and mpi4py; the only module that imports them
"""
