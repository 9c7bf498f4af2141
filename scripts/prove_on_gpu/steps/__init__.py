"""The steps, one module each. `run` returns an Outcome, or raises StepFailedError or StepSkippedError."""
