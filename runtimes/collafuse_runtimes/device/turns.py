"""Measuring things side by side on a machine that drifts."""

import random
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def in_turns(things: Sequence[T], rounds: int, settle_s: float) -> Iterator[tuple[int, T]]:
    """(round, thing): each once a round, in a fresh order, so that none always follows the same neighbour.

    What drifts on the machine then drifts for all of them, and ratios taken within a round hold.

    Args:
        settle_s: pause before each, in seconds: thread pools of the one before go on spinning for a while.
    """
    order = random.Random(0)
    for number in range(rounds):
        for thing in order.sample(things, len(things)):
            time.sleep(settle_s)
            yield number, thing
