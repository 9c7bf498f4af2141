"""`make soak`: mixed traffic against a stack of its own; fails on growth and on wrong responses.

settings.py  duration, number of clients, output
traffic.py   concurrent clients that check every response
samples.py   memory, descriptors, threads and shared memory of each process over time
growth.py    detects growth in a series of samples
report.py    soak.json, and a plot as PNG and SVG
run.py       runs stack, traffic and sampling, with a progress bar
"""
