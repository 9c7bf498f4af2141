"""Results of a run, judged and presented. Nothing here measures.

figures.py  statistics of timelines
results.py  results.json
targets.py  performance targets, and whether a run has met them
tables.py   results.md
plots.py    plots as PNG and SVG
"""
