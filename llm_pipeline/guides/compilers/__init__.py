"""The libraries that compile guides, one module each, under the same interface (guide_process.Compile)."""
