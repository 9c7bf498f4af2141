"""Results of a run, judged and presented. Nothing here measures.

figures.py     statistics of timelines
results.py     results.json
targets.py     performance targets, and whether a run has met them
comparison.py  the cost of events, and two source trees side by side
tables.py      results.md
style.py       colours and fonts of the plots
plots.py       plots as PNG and SVG
"""
