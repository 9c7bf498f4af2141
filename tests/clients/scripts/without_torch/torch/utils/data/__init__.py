from torch.utils.data.dataloader import DataLoader
from torch.utils.data.dataset import IterableDataset


def get_worker_info() -> None:
    """None: rows are read in the process that iterates, without workers."""


__all__ = ["DataLoader", "IterableDataset", "get_worker_info"]
