"""The embedded CPU engine: continuous batching over OpenVINO's paged attention, in its own process.

It replaces OpenVINO GenAI's ContinuousBatchingPipeline (docs/decisions/0002-cpu-engine.md), whose requests share one
random generator that every new request re-seeds, so that a seed gave other text in a batch than alone; whose `step()`
holds the GIL; and whose sampler limits logprobs and biases.

weights.py           the engine's file: tensors and architecture parameters
graph.py             the model as a graph around paged attention (docs/decisions/0009-cpu-graph.md)
paged_model.py       the compiled graph and its KV cache (with graph.py the only modules that import openvino)
blocks.py            reference counts of KV cache blocks, and the prefix cache; pure
scheduler.py         the tokens of the next step, and their KV cache blocks; pure
prompt_lookup.py     drafts from text that repeats itself; pure
logits_processor.py  bias, bans and penalties; numpy
sampler.py           logits -> token; numpy
logprobs.py          logits -> logprobs; numpy
guided.py            masks of guided sequences, and what waits for them
core.py              requests in, steps out: scheduler + model + sampler
ipc.py               messages between decode and the engine process
process.py           the engine behind a socket, as `python -m llm_pipeline.executors.cpu.engine.process`
measure.py           speed of the engine alone, as `python -m llm_pipeline.executors.cpu.engine.measure`
"""
