"""Starts Triton for one TensorRT-LLM engine or model directory: `python -m launcher.gpu`.

launch.py         settings, launch mode and command lines
served_engine.py   what is served: its runtime and its number of ranks
hosts.py          several hosts: their names, and how mpirun reaches them by ssh
worker.py         the other hosts: sshd, and the ranks that mpirun starts there with remote_command.py
server_group.py   runs the servers, forwards signals, ends all of them if one can no longer serve, and what they leave
"""
