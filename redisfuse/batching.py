"""Splitting work into bounded batches, and the size of one chunk of bytes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

CHUNK_BYTES = 1 << 20
"""The most bytes of one value that are requested from the server, journaled or held in one piece."""


def batched(
    items: Iterable[T], max_items: int, *, max_weight: int | None = None, weigh: Callable[[T], int] | None = None
) -> Iterator[list[T]]:
    """Yield the items, in order, in lists of at most `max_items`.

    Like itertools.batched of Python 3.12, but with weights and lists. With `max_weight`, the weights of a batch add up
    to at most that, unless a single item weighs more.
    """
    batch: list[T] = []
    weight = 0
    for item in items:
        item_weight = 0 if weigh is None else weigh(item)
        if batch and (len(batch) >= max_items or (max_weight is not None and weight + item_weight > max_weight)):
            yield batch
            batch, weight = [], 0
        batch.append(item)
        weight += item_weight
    if batch:
        yield batch
