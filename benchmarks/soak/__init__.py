"""`make soak`: mixed traffic for a set time, against a stack started for it; fails on growth and on wrong answers.

settings.py  how long and how much
traffic.py   clients of every kind, each of which checks its answers
samples.py   memory, descriptors, threads and shared memory of each process, once a second
growth.py    whether something grows, from its samples (pure)
report.py    JSON, and a plot as PNG and SVG
run.py       puts it together, with a progress bar
"""
