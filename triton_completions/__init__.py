"""The program `triton-completions`: one name for everything that a person starts.

keys.py      adds, lists, revokes and rotates API keys
usage.py     prints what keys have used
__main__.py  picks the program for a subcommand and imports that one only
"""
