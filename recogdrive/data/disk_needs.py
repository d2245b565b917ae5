"""Disk that the caches of a split take, before they are made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CacheSize:
    """What one scene takes in a cache.

    Attributes:
      name: What is cached, and how.
      scene_bytes: Bytes a scene.
      source: Where the number is from.
    """

    name: str
    scene_bytes: int
    source: str


CONTEXT_TOKENS = 2800
"""Rows of hidden states a scene: 9 tiles and the prompt, padded. Source: upstream `recogdrive_features.py`."""
_BFLOAT16_BYTES = 2
_BYTE_PLANES = 0.67
"""What is left of bfloat16 states whose bytes are sorted by place and compressed; see docs/benchmarks.md."""


def _hidden_states(size: str, width: int) -> tuple[CacheSize, CacheSize]:
    raw = CONTEXT_TOKENS * width * _BFLOAT16_BYTES
    shape = f"{CONTEXT_TOKENS:,} tokens x {width:,} x {_BFLOAT16_BYTES} bytes"
    return (
        CacheSize(f"hidden states {size}, bfloat16", raw, shape),
        CacheSize(f"hidden states {size}, compressed", round(raw * _BYTE_PLANES), f"{_BYTE_PLANES:.1%} of the above"),
    )


CACHE_SIZES: Sequence[CacheSize] = (
    CacheSize("scenes to score in (container)", 25_000, "measured on navsim_mini"),
    CacheSize("official metric cache", 290_000, "lzma pickles of the same scenes"),
    *_hidden_states("2B", 1536),
    *_hidden_states("8B", 3584),
)


@dataclass(frozen=True)
class DiskNeed:
    """What one cache takes of the disk.

    Attributes:
      cache: Which.
      bytes: Split -> bytes.
      fits: Whether all splits together fit the free disk.
    """

    cache: CacheSize
    bytes: Mapping[str, int]
    fits: bool


def disk_needs(scenes: Mapping[str, int], free_bytes: int) -> list[DiskNeed]:
    """What every cache takes for splits of so many scenes, each cache taken alone."""
    needs = []
    for cache in CACHE_SIZES:
        sizes = {split: count * cache.scene_bytes for split, count in scenes.items()}
        needs.append(DiskNeed(cache, sizes, sum(sizes.values()) <= free_bytes))
    return needs
