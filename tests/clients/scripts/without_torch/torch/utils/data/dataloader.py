from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")


class DataLoader(Generic[Row]):
    """Batches of one row, in order."""

    def __init__(self, dataset: Iterable[Row], *, batch_size: int, collate_fn: Callable[[list[Row]], Any], **_: Any):
        assert batch_size == 1
        self.dataset = dataset
        self._collate = collate_fn

    def __iter__(self) -> Iterator[Any]:
        return (self._collate([row]) for row in self.dataset)
