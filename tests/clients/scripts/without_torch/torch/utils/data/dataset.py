from typing import Generic, TypeVar

Row = TypeVar("Row")


class IterableDataset(Generic[Row]): ...
