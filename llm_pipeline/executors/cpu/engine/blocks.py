"""KV cache blocks: who uses which, and which hold a prompt's beginning that another request may use again. Pure.

A block is free, in use by one sequence or more, or idle: in use by none, but its content is still known by name. Idle
blocks are taken when no free one is left, the one that was used longest ago first.

The name of a full block is a hash over its tokens and all tokens before it, so equal names mean equal KV content
(vLLM's automatic prefix caching does the same). Only full blocks have names, and full blocks are never written again:
what is shared does not change.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

_DIGEST_BYTES = 16


def root_name(salt: int | None) -> bytes:
    """What the first block's name starts from; different salts share nothing."""
    return b"" if salt is None else b"salt" + salt.to_bytes(8, "little")


def block_name(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The name of a full block that follows the one named `parent`."""
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=_DIGEST_BYTES).digest()


class BlockPool:
    """Blocks 0 to `count` - 1."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count))
        self._users = [0] * count
        self._names: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # used longest ago first

    @property
    def available_count(self) -> int:
        """Free and idle blocks: what `take` can hand out."""
        return len(self._free) + len(self._idle)

    @property
    def named_count(self) -> int:
        return len(self._blocks)

    def take(self) -> int:
        """A block for new content. IndexError when none is available."""
        if self._free:
            block = self._free.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            del self._blocks[self._names.pop(block)]
        else:
            raise IndexError("no block is available")
        self._users[block] = 1
        return block

    def share(self, names: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known beginning of `names`, each with one more user."""
        found = []
        for name in names:
            block = self._blocks.get(name)
            if block is None:
                break
            self._users[block] += 1
            self._idle.pop(block, None)
            found.append(block)
        return found

    def name(self, block: int, name: bytes) -> None:
        """The block is full and computed. A second block with the same content stays nameless."""
        if name not in self._blocks and block not in self._names:
            self._blocks[name] = block
            self._names[block] = name

    def give_back(self, blocks: Sequence[int]) -> None:
        """One user less for each. The last of a sequence's blocks is the first to go: without those before it, useless.

        RuntimeError when a block has no user.
        """
        for block in reversed(blocks):
            if self._users[block] <= 0:
                raise RuntimeError(f"block {block} is given back twice")
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._names:
                self._idle[block] = None
            else:
                self._free.append(block)
