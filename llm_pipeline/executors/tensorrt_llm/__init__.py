"""The TensorRT-LLM executor. NOT RUN on TensorRT-LLM: docs/tensorrt-llm.md says what is proved and what is not.

load.py      reads and checks the engine directory, makes the executor
fit.py       whether an engine and this machine fit each other, and what the settings make of the engine's limits
admission.py whether a request fits the engine
executor.py  the requests in flight, the awaiter thread, cancelling, death
steps.py     what a response means for its request
follower.py  what stands in its place on MPI ranks above 0
engine.py    the port between those and upstream.py, in our own terms
failures.py  what upstream's error texts mean
upstream.py  every call into tensorrt_llm and torch; the only module that imports them
"""
