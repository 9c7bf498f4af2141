"""The targets of a build: this or any CPU, and NVIDIA GPUs by name or as the driver reports them, with the precisions
that each one supports. Plain data; nothing here compiles an engine.
"""
