"""Release numbers of TensorRT-LLM, and the profile of its PyTorch runtime that each release belongs to."""

from __future__ import annotations

import re
from typing import NamedTuple

from llm_pipeline.protocol.capabilities import PyTorchProfile

_FINAL = 10**6  # sorts after every release candidate
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:rc(\d+))?(?![\w.])")


class Release(NamedTuple):
    """A version as numbers that compare in the order of releases: 1.3.0rc26 comes before 1.3.0."""

    major: int
    minor: int
    micro: int
    candidate: int

    @classmethod
    def parse(cls, version: str) -> Release | None:
        """Returns None if `version` is not a number of a release or a release candidate; a local part is ignored."""
        match = _VERSION.match(version.partition("+")[0])
        if match is None:
            return None
        major, minor, micro, candidate = match.groups()
        return cls(int(major), int(minor), int(micro or 0), _FINAL if candidate is None else int(candidate))


# 1.2.1 is the first whose LLM API was read. The candidates of 1.3 before rc26 still have both samplers, and each moves
# a few fields from one to the other (docs/features/sampling of 1.3.0rc24 and rc26). Nothing after 1.4 was read.
_FIRST_1_2 = Release(1, 2, 1, _FINAL)
_AFTER_1_2 = Release(1, 3, 0, 0)
_FIRST_1_3 = Release(1, 3, 0, 26)
_AFTER_1_4 = Release(1, 5, 0, 0)
PYTORCH_RELEASES = "1.2.1 and later releases of 1.2, or 1.3.0rc26 up to, but not including, 1.5"


def pytorch_profile_of(version: str) -> PyTorchProfile | None:
    """Returns None for a release that the executor `tensorrt_llm_pytorch` is not written for."""
    release = Release.parse(version)
    if release is None:
        return None
    if _FIRST_1_2 <= release < _AFTER_1_2:
        return PyTorchProfile.V1_2
    return PyTorchProfile.V1_3 if _FIRST_1_3 <= release < _AFTER_1_4 else None
