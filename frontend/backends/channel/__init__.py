"""Sends the requests of this process to one Triton in bundles, and receives all their text over one channel."""
