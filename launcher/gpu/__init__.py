"""Starts Triton for one TensorRT-LLM engine: `python -m launcher.gpu`.

launch.py        settings, launch mode and command lines
server_group.py  runs the servers, forwards signals, and ends all of them if one can no longer serve
"""
