"""Starts the systems that are measured.

programs.py     runs a program by others for a block
servers.py      our stack, from this or another source tree, and servers by others
baselines.py    command-line options as systems to compare with
engine_only.py  the CPU engine in one process, without Triton and HTTP
"""
