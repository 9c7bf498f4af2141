"""The program `triton-completions`: one name for everything that a person starts.

__main__.py  picks the program for a subcommand and imports that one only
"""
