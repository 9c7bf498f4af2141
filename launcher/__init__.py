"""Starts the whole stack on one machine: engine, Triton from its pip wheel, front end. `make serve` runs it.

settings.py       ports, names and folders, from the environment
checks.py         what must be there before anything starts, and how to mend it when it is not
triton_server.py  the tritonserver binary inside the nvidia-pytriton wheel, made ready to run
processes.py      one supervised child process: log file, restart, end
health_watch.py   starts Triton again when it runs and does not answer
stub_watch.py     starts Triton again when the process of one of its models has died
stack.py          engine -> Triton -> front end -> ready; and everything down again
multi_gpu.py      command lines for one or several GPUs: single, leader (mpirun) and orchestrator mode
"""
