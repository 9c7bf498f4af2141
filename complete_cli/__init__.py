"""The program `complete`: a client of the completions and chat APIs for the command line.

cli.py           `complete`: one completion
chat_cli.py      `complete chat`: one answer or a conversation
options.py       options of both, the choice of a server, exit statuses
interaction.py   messages and commands at the terminal
conversation.py  messages and tools, and their file
chat_answer.py   an answer as it arrives
local_server.py  the server that runs from this directory
request.py       prompt and request body
client.py        HTTP: responses, streams, errors
output.py        standard output and standard error
report.py        text of interleaved choices, and the timing line
"""
