"""Builds many engines from one file, one at a time. Running it again resumes.

file     reads the TOML file into one entry per engine
jobs     plans each entry: work that can run, or the reasons why it is refused
runner   runs the jobs and collects their results
"""
