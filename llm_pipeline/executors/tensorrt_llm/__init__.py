"""The TensorRT-LLM executor. NOT RUN on TensorRT-LLM: docs/tensorrt-llm.md lists what is proved and what is not.

load.py                  reads and checks the engine directory, then creates the executor
compatibility.py         checks engine, machine and settings against each other; derives the engine's options
request_limits.py        checks a request against the engine's limits
executor.py              live requests, the awaiter thread, cancellation, fatal errors
engine_health.py         whether the engine is silent, hangs, or fails every request
watchdog.py              ends the process if not even the awaiter runs any more
responses.py             responses of the engine -> steps
worker_rank.py           the executor of MPI ranks above 0
engine.py                the port between the executor and bindings.py, in our own terms
error_classification.py  error texts of upstream -> kinds of failure
bindings.py              every call into tensorrt_llm and torch; the only module that imports them
"""
