"""Reads a model directory without any engine library: the shape of the model, its quantization, the sizes on disk."""
