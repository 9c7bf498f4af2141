"""Verification of a finished engine directory for any target: combines the checks of `artifact`, `cpu` and `gpu`."""
