"""`python -m scripts.prove_on_gpu`, which `scripts/prove-on-gpu` runs."""

from __future__ import annotations

from scripts.prove_on_gpu.cli import app

if __name__ == "__main__":
    app(prog_name="scripts/prove-on-gpu")
