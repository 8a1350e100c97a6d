"""What is known of a value's samples while a program is followed: the states, and how they move and join."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Follows(NamedTuple):
    """Entry i of the batch sits at index i along ``axis``; a merged axis counts ``inner`` entries for each sample."""

    axis: int
    inner: int = 1


class Same(NamedTuple):
    """Independent of the inputs; constant along ``constant`` axes."""

    constant: frozenset[int]


class Mixed(NamedTuple):
    """Holds several samples in one entry; ``where`` is the primitive that did it."""

    where: str


class Unknown(NamedTuple):
    """Depends on the inputs in a way that the rules do not cover."""

    where: str


class Round(NamedTuple):
    """Belongs to the sample of the current round of a loop over samples."""


Known = Follows | Same
State = Known | Mixed | Unknown | Round


class Undecided(Exception):
    """A rule met something that it does not cover."""


class Mixes(Exception):
    """A rule met an operation across samples."""


def same(ndim: int, constant: Iterable[int]) -> Same:
    """Independent of the inputs, constant along those of ``constant`` that exist."""
    return Same(frozenset(axis for axis in constant if axis < ndim))


def carry(state: Known, places: dict[int, int], ndim: int) -> Known:
    """The state after axis ``a`` became ``places[a]``; other axes are gone."""
    if isinstance(state, Follows):
        return state._replace(axis=places[state.axis])
    return same(ndim, [places[axis] for axis in state.constant if axis in places])


def inside(state: Known) -> State:
    """A loop's input as one round sees it."""
    if isinstance(state, Follows):
        return Round() if state.axis == 0 else state._replace(axis=state.axis - 1)
    return Same(frozenset(axis - 1 for axis in state.constant if axis)) if isinstance(state, Same) else state


def outside(state: State) -> State:
    """A loop round's result, stacked."""
    if isinstance(state, Round):
        return Follows(0)
    if isinstance(state, Follows):
        return state._replace(axis=state.axis + 1)
    return Same(frozenset(axis + 1 for axis in state.constant)) if isinstance(state, Same) else state


def join(one: State, two: State) -> State:
    """The state of a value that is sometimes in ``one``, sometimes in ``two``."""
    if one == two:
        return one
    for kind in (Mixed, Unknown):
        for state in (one, two):
            if isinstance(state, kind):
                return state
    if isinstance(one, Same) and isinstance(two, Same):
        return Same(one.constant & two.constant)
    if isinstance(one, Follows) and isinstance(two, Follows):
        return Unknown("loop")
    for tag, other in ((one, two), (two, one)):
        if isinstance(tag, Follows) and isinstance(other, Same) and tag.axis in other.constant:
            return tag
    return Unknown("loop")
