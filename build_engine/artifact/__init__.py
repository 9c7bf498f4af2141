"""The engine directory, for every target: how it is published, what it contains, and the checks that need no engine
library.
"""
