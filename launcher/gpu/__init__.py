"""Starts Triton for one TensorRT-LLM engine or model directory: `python -m launcher.gpu`.

launch.py         settings, launch mode and command lines
served_engine.py  what is served: its runtime and its number of ranks
server_group.py   runs the servers, forwards signals, ends all of them if one can no longer serve, and what they leave
"""
