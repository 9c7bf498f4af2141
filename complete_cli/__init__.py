"""The program `complete`: a client of the completions API for the command line.

cli.py           options, exit statuses
local_server.py  the server that runs from this directory
request.py       prompt and request body
client.py        HTTP: responses, streams, errors
output.py        standard output and standard error
report.py        text of interleaved choices, and the timing line
"""
