"""A fake of the parts of torch that llm_pipeline uses: a vector of float32, and the list of GPUs."""

from tensorrt_llm.script import read_script

float32 = "float32"


class Tensor:
    """One dimension, writable by index."""

    def __init__(self, size: int, dtype: str) -> None:
        self.shape = (size,)
        self.dtype = dtype
        self.values = [0.0] * size

    def __setitem__(self, index: int, value: float) -> None:
        self.values[index] = float(value)

    def __getitem__(self, index: int) -> float:
        return self.values[index]

    def detach(self) -> "Tensor":
        return self

    def clone(self) -> "Tensor":
        copy = Tensor(self.shape[0], self.dtype)
        copy.values = list(self.values)
        return copy


def zeros(size: int, *, dtype: str) -> Tensor:
    return Tensor(size, dtype)


def tensor(values: list[float], *, dtype: str) -> Tensor:
    made = Tensor(len(values), dtype)
    made.values = [float(value) for value in values]
    return made


class cuda:  # noqa: N801 - torch's name
    @staticmethod
    def device_count() -> int:
        return len(read_script().sms)

    @staticmethod
    def get_device_capability(index: int) -> tuple[int, int]:
        major, minor = divmod(int(read_script().sms[index]), 10)
        return major, minor
