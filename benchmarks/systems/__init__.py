"""Starts the systems that are measured.

servers.py      our stack, llama.cpp's server, and servers that already run
baselines.py    command-line options as baselines
engine_only.py  the CPU engine in one process, without Triton and HTTP
"""
