"""The few names of torch that guidellm uses to iterate over the rows of a dataset; nothing of it computes here.

guidellm declares torch (about 1 GB with what it pulls) and imports it in one module, guidellm/data/loaders/torch.py.
This folder stands on the path of guidellm's processes alone.
"""

from torch import nn, utils

__version__ = "0.0.0"


class Generator:
    """Accepted and not used: rows come in order."""

    def manual_seed(self, seed: int) -> None:
        self.seed = seed


class Tensor:
    """For isinstance checks: nothing is one."""


__all__ = ["Generator", "Tensor", "nn", "utils"]
