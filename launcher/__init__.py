"""Starts the whole stack on one machine: engine, Triton from its pip wheel, front end. `make serve` runs it.

settings.py           ports, names and folders, from the environment
check_python.py       checks the interpreter before anything is installed
ports.py              finds free ports
model_repository.py   renders a Triton model repository with an ensemble for each model of a deployment
stub_monitor.py       detects dead stub processes of a Triton server
local/                the stack of `make serve` and of the CPU image
gpu/                  Triton for one TensorRT-LLM engine on one or several GPUs: the GPU image's program
"""
