"""Starts the whole stack on one machine: engine, Triton from its pip wheel, front end.

`triton-completions serve` and `make serve` run it.

settings.py           ports, names and folders, from the environment
setting_names.py      finds the setting that a misspelt name was meant to be
setting_problems.py   messages for invalid values
check_python.py       checks the interpreter before anything is installed
install.py            installs the packages before the first start, with one line of progress
memory.py             memory that a start may use, in a container too
ports.py              finds free ports
model_repository.py   renders a Triton model repository with an ensemble for each model of a deployment
stub_monitor.py       detects dead stub processes of a Triton server
local/                the stack of `make serve` and of the CPU image
gpu/                  Triton for one TensorRT-LLM engine on one or several GPUs: the GPU image's program
"""
