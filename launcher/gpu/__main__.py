"""`python -m launcher.gpu`: starts Triton for one TensorRT-LLM engine."""

from __future__ import annotations

import sys

from launcher.gpu.launch import main

if __name__ == "__main__":
    sys.exit(main())
