"""Maps of what becomes of a run over two of its settings, and the zoom into their boundary."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from dynamics.arguments import check_counts
from dynamics.backend import by_backend
from dynamics.statistics import boundary
from dynamics.types import Array

ROUNDING = 2.0**10
"""Distance of neighbouring pixels, at least, in units of float64's rounding of their coordinates."""


class OutcomeMap(NamedTuple):
    """One picture; the first axis of its arrays is x, the second y.

    Attributes:
        label: of each pixel.
        shade: the second number of each pixel, for pictures; None where ``outcome`` gave one alone.
        x, y: float64, the pixels' centres.
    """

    label: Shaped[np.ndarray, "r r"]
    shade: Float[np.ndarray, "r r"] | None
    x: Float[np.ndarray, " r"]
    y: Float[np.ndarray, " r"]


def outcome_map(
    outcome: Callable[..., Any],
    x: tuple[float, float],
    y: tuple[float, float],
    *arguments: Any,
    points: int = 256,
    levels: int = 1,
    zoom: int = 4,
    candidates: int = 3,
    parallel: int | None = None,
) -> tuple[OutcomeMap, ...]:
    """The label of every pixel ``(x, y)`` of a square grid, and again ``zoom`` times closer where labels meet most.

    Each level but the first shows one of the ``zoom x zoom`` tiles of the level before: of the ``candidates`` that hold
    most 2 x 2 blocks of more than one label, that which holds most of them when seen closer (on a quarter of the points
    an axis, or 32), so that a rough boundary is found beside a smooth one. All is in float64, whatever the settings.

    Args:
        outcome: ``(x, y, *arguments) -> label`` or ``-> (label, shade)`` of one pixel, scalars both: a function that
            JAX can trace, e.g. whether ``fori_loop`` over a step converged.
        x, y: ``(low, high)``, the edges of the first level.
        arguments: arrays and trees of them that all pixels share: the same ``outcome`` is compiled once for all.
        points: pixels along each axis, r.
        levels: pictures; fewer come back when one has a single label, and so no boundary to zoom into.
        zoom: magnification of each level by the one before, a divisor of ``points``.
        candidates: tiles looked into.
        parallel: pixels computed side by side. None: 4096, whose state fits a CPU's cache; 2^18 on an accelerator,
            whose steps cost much the same however few the pixels.

    Returns:
        An ``OutcomeMap`` a level.

    Raises:
        ValueError: for a range that is empty, a number out of range, or levels at which pixels are no longer told apart
            in float64.
        TypeError: where ``outcome`` gives no scalars.

    Cost: ``r^2`` outcomes, and ``(1 + candidates/16) r^2`` for each further level.

    Example:
        >>> import jax.numpy as jnp
        >>> disc = outcome_map(lambda x, y: x**2 + y**2 < 1, (-2.0, 2.0), (-2.0, 2.0), points=32, levels=2)
        >>> disc[0].label.shape, float(disc[1].x[1] - disc[1].x[0])
        ((32, 32), 0.03125)
    """
    spans = [_span("x", x), _span("y", y)]
    check_counts(2, points=points, zoom=zoom)
    parallel = by_backend(4096, 2**18) if parallel is None else parallel
    check_counts(levels=levels, candidates=candidates, parallel=parallel)
    if levels > 1 and points % zoom:
        raise ValueError(f"zoom: got {zoom} for {points} points; allowed: a divisor of them")
    for name, (low, width) in zip("xy", spans):
        finest = width / points / zoom ** (levels - 1)
        least = ROUNDING * np.finfo(float).eps * max(abs(low), abs(low + width))
        if finest < least:
            most = 1 + int(np.log(width / points / least) / np.log(zoom)) if width / points >= least else 0
            raise ValueError(
                f"levels: got {levels}; allowed: {most} at most, where float64 still tells pixels along {name} apart"
            )
    with jax.enable_x64(True):
        _check_outcome(outcome, arguments)

        def seen(spans, points):
            centres = [low + width * (np.arange(points) + 0.5) / points for low, width in spans]
            grid = np.meshgrid(*centres, indexing="ij")
            return _picture(_pixels(outcome, min(parallel, points**2), *grid, arguments), centres)

        found, here, look = [seen(spans, points)], spans, min(points, max(points // 4, 32))
        while len(found) < levels and (edge := boundary(found[-1].label)).any():
            tiles = [
                [(low + width * at / zoom, width / zoom) for (low, width), at in zip(here, tile)]
                for tile in _fullest(edge, points, zoom, candidates)
            ]
            looks = [boundary(seen(tile, look).label).sum() for tile in tiles] if len(tiles) > 1 else [1]
            here = tiles[int(np.argmax(looks))]
            found.append(seen(here, points))
    return tuple(found)


def _span(name: str, given: Any) -> tuple[float, float]:
    """``(low, width)``."""
    ends = np.asarray(given)
    if ends.shape != (2,) or ends.dtype.kind not in "iuf" or not -np.inf < ends[0] < ends[1] < np.inf:
        raise ValueError(f"{name}: got {given!r}; allowed: (low, high) with low < high, finite")
    return float(ends[0]), float(ends[1] - ends[0])


def _check_outcome(outcome: Callable[..., Any], arguments: Any) -> None:
    given = jax.eval_shape(outcome, jnp.zeros(()), jnp.zeros(()), *arguments)
    leaves = given if isinstance(given, tuple) else (given,)
    if not 1 <= len(leaves) <= 2 or any(getattr(leaf, "shape", None) != () for leaf in leaves):
        got = jax.tree.map(lambda leaf: leaf.shape, given)
        raise TypeError(f"outcome: got {got} of one pixel; allowed: a scalar label, or (label, shade)")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pixels(outcome: Callable[..., Any], parallel: int, x: Array, y: Array, arguments: Any) -> Any:
    """Label, or label and shade, like ``x [r, r]``, in pieces of one size."""

    def piece(at):
        return jax.vmap(lambda x, y: outcome(x, y, *arguments))(*at)

    count = -(-x.size // parallel)
    flat = [jnp.pad(jnp.ravel(one), (0, count * parallel - x.size), mode="edge") for one in (x, y)]
    found = jax.lax.map(piece, [one.reshape(count, parallel) for one in flat])
    return jax.tree.map(lambda leaf: leaf.reshape(-1)[: x.size].reshape(x.shape), found)


def _picture(found: Any, centres: list[np.ndarray]) -> OutcomeMap:
    label, shade = found if isinstance(found, tuple) else (found, None)
    return OutcomeMap(np.asarray(label), None if shade is None else np.asarray(shade), *centres)


def _fullest(edge: np.ndarray, points: int, zoom: int, count: int) -> list[tuple[int, int]]:
    """The tiles that hold most of the boundary, and some of it."""
    whole = np.pad(edge, (0, points - edge.shape[0]))
    side = points // zoom
    held = whole.reshape(zoom, side, zoom, side).sum((1, 3)).ravel()
    order = [tile for tile in np.argsort(-held, kind="stable")[:count] if held[tile]]
    return [(int(tile) // zoom, int(tile) % zoom) for tile in order]
