"""The embedded CPU engine: continuous batching over OpenVINO's paged attention, in a process of its own.

Why not OpenVINO GenAI's own ContinuousBatchingPipeline, which this replaces (docs/decisions/0002-cpu-engine.md): all of
its requests share one random generator that every new request re-seeds, so a seed gave the same text alone but not in
a crowd; `step()` holds the GIL; and log probs and biases end at what its sampler offers.

weights.py       the engine's file: tensors and the numbers of the architecture
graph.py         the model as a graph around paged attention (docs/decisions/0009-cpu-graph.md)
paged_model.py   the compiled graph and its KV cache (with graph.py the only modules that import openvino)
blocks.py        who uses which KV block, and which hold a prompt's beginning that others may use again; pure
scheduler.py     which tokens go into the next step, and which KV blocks they use; pure
sampler.py       logits -> token; numpy
engine.py        requests in, steps out: scheduler + model + sampler
wire.py          what the two processes say to each other
process.py       the engine behind a socket, as `python -m llm_pipeline.executors.cpu.engine.process`
measure.py       the bare engine's speed, as `python -m llm_pipeline.executors.cpu.engine.measure`
"""
