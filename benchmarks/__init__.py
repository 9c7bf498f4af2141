"""`make bench`: measures throughput, latency and cost of the whole product, and compares them within one run.

Load comes from processes of their own, which keep raw bytes and arrival times while the clock runs and parse them
afterwards, so that parsing costs none of the measured time.

machine.py    facts about the machine, and how busy it is with other work
processes.py  CPU time and memory by role
load/         load clients and what they record
scenarios.py  systems, loads and repeats, as data
systems/      starts the measured systems: our stack, baselines, the engine alone
report/       figures, targets, tables and plots from results.json
runner.py     runs the scenarios
options.py    options of the command line
soak/         `make soak`: long mixed traffic that fails on growth or a wrong response
"""
