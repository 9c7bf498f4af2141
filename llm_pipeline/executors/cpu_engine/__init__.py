"""The embedded CPU engine: continuous batching over OpenVINO's paged attention, in a process of its own.

Why not OpenVINO GenAI's own ContinuousBatchingPipeline, which this replaces (docs/decisions/0002-cpu-engine.md): all of
its requests share one random generator that every new request re-seeds, so a seed gave the same text alone but not in
a crowd; `step()` holds the GIL; and log probs and biases end at what its sampler offers. The compiled graph and the
kernels are the same, and so is the speed.

paged_model.py   the compiled graph and its KV cache (the only module that imports openvino)
scheduler.py     which tokens go into the next step, and which KV blocks they use; pure
sampler.py       logits -> token; numpy
engine.py        requests in, steps out: scheduler + model + sampler
wire.py          what the two processes say to each other
process.py       the engine behind a socket, as `python -m llm_pipeline.executors.cpu_engine.process`
"""
