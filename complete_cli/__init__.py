"""The program `complete`: a client of the completions API for the command line.

cli.py      options, exit statuses
request.py  prompt and request body
client.py   HTTP: responses, streams, errors
report.py   text of interleaved choices, and the timing line
"""
