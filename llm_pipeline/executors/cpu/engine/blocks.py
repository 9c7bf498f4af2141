"""KV cache blocks: reference counts, and the prefix cache that lets requests share blocks. Pure.

A block is free, in use by one or more sequences, or cached: in use by none, but its content can still be found by its
hash. Cached blocks are evicted when no free one is left, least recently used first.

The hash of a full block covers its tokens and all tokens before it, so equal hashes mean equal KV content (as in vLLM's
automatic prefix caching). Only full blocks have hashes, and full blocks are never written again, so what is shared does
not change.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

_DIGEST_BYTES = 16


def root_hash(salt: int | None) -> bytes:
    """Returns the parent hash of a first block; requests with different salts share nothing."""
    return b"" if salt is None else b"salt" + salt.to_bytes(8, "little")


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Returns the hash of a full block of tokens that follows the block with the hash `parent`."""
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=_DIGEST_BYTES).digest()


class BlockPool:
    """Blocks 0 to `count` - 1."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count))
        self._reference_counts = [0] * count
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def available_count(self) -> int:
        """Number of blocks that `allocate` can return: free and cached ones."""
        return len(self._free) + len(self._cached)

    def count_exclusive(self, blocks: Iterable[int]) -> int:
        """Returns the number of blocks that have no reference but those in `blocks`, which has one entry for each."""
        return sum(self._reference_counts[block] == count for block, count in Counter(blocks).items())

    def allocate(self) -> int:
        """Returns a block for new content, evicting a cached one if need be. Raises IndexError if none is available."""
        if self._free:
            block = self._free.pop()
        elif self._cached:
            block, _ = self._cached.popitem(last=False)
            del self._block_of[self._hash_of.pop(block)]
        else:
            raise IndexError("no block is available")
        self._reference_counts[block] = 1
        return block

    def share_prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """Returns the blocks of the longest known prefix of `hashes`, and adds a reference to each."""
        blocks = []
        for digest in hashes:
            block = self._block_of.get(digest)
            if block is None:
                break
            self._reference_counts[block] += 1
            self._cached.pop(block, None)
            blocks.append(block)
        return blocks

    def register(self, block: int, digest: bytes) -> None:
        """Makes a full, computed block available for sharing. A second block with equal content is not registered."""
        if digest not in self._block_of and block not in self._hash_of:
            self._block_of[digest] = block
            self._hash_of[block] = digest

    def release(self, blocks: Sequence[int]) -> None:
        """Removes one reference from each block of a sequence. Raises RuntimeError if a block has none.

        Later blocks are evicted before earlier ones, without which they are of no use.
        """
        for block in reversed(blocks):
            if self._reference_counts[block] <= 0:
                raise RuntimeError(f"block {block} is released twice")
            self._reference_counts[block] -= 1
            if self._reference_counts[block]:
                continue
            if block in self._hash_of:
                self._cached[block] = None
            else:
                self._free.append(block)
