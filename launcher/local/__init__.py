"""Runs Triton and the front end as supervised child processes.

stack.py                 starts engine, Triton and front end, waits until they are ready, stops them in order
preflight.py             checks the machine and the settings before anything starts
engine_build.py          builds the engine that is served if ENGINE_DIR is unset, from MODEL or the default model
api_key.py               chooses the API key and stores a generated one
triton_wheel.py          runs the tritonserver binary of the nvidia-pytriton wheel
frontend_environment.py  environment of the front-end process
processes.py             one supervised child process: log file, restarts, shutdown
liveness.py              restarts a Triton that has stopped answering or has lost a stub
stage_monitor.py         restarts a Triton in which the process of a stage hangs
readiness.py             waits until every model answers
banner.py                prints the URLs, the key and an example request
server_file.py           writes the address and the key for the command line
serve.py                 runs the stack in the foreground until a signal
"""
