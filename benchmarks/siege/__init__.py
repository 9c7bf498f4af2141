"""`make siege`: measures whether a client feels another one, beside each kind of hostile client on a stack of its own.

options.py   duration, kinds, random guides, output
target.py    address, model and keys of the stack
wire.py      HTTP over plain sockets, for clients that send anything, or read nothing
guides/      hostile guides by kind, and random guides from a seed
attacks/     hostile clients by kind
load.py      the process of the hostile clients, at the lowest priority
load_process.py  starts it for a phase
probe.py     the process of the probe: a stream, short requests, readiness; one line for each sample
samples.py   samples of the probe by phase, and their quantiles
watch.py     memory, descriptors and restarts of the stack's processes
phases.py    the plan: quiet, each kind, all kinds together, random guides
run.py       runs stack, probe and phases, with a progress bar
results.py   what a phase showed, what is allowed, and the findings
report.py    siege.json, siege.md and a plot

The hostile clients use the server through its HTTP port alone, at a bounded rate and as few processes: the siege
measures the isolation of the server, and not how much a small machine can send.
"""
