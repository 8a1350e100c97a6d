"""How activations and their changes scale with width, layer by layer, from sizes of weights and of their updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class LayerScaling(NamedTuple):
    """Width exponents of a layer ``h = n^multiplier W x``: a size ``~ n^exponent`` for each.

    Attributes:
        fan_in, fan_out: of the numbers of its inputs that it sums over and of its outputs; 0 where they are fixed.
        multiplier: of what scales the product.
        weight: of the size of an entry of W at the start (-inf where that is zero).
        update: of the size of an entry of its change.
        data: of the size of an entry of x; None: that of the sources.
        sources: the layers that x comes from, by their place; none for the data themselves, which do not move.
    """

    fan_in: float
    fan_out: float
    multiplier: float
    weight: float
    update: float
    data: float | None = None
    sources: tuple[int, ...] = ()


class Coordinates(NamedTuple):
    """Exponents of a layer: of the activation h at the start, and of its change by one step."""

    activation: float
    change: float


def coordinate_exponents(layers: Sequence[LayerScaling]) -> list[Coordinates]:
    """Exponents of ``h_l = m W_l x`` and of ``dh_l``, from alignments: a sum of n terms grows as ``n^1/2`` at random
    and as n where they are aligned.

        activation = multiplier + weight + fan_in/2 + data
        change = max(multiplier + update + fan_in + data,                     W moves, aligned with x
                     multiplier + weight + c fan_in + moved)                  x moves; c = 1/2, or 1 in the last layer

    with ``moved``, the exponent of dx, the largest ``change`` of the sources, scaled as x is by them. In a layer with
    outputs of a fixed number (the last) the incoming change, made by its own backward signal, is aligned with W.

    Args:
        layers: in the order of the forward pass.

    Returns:
        One ``Coordinates`` a layer.

    Raises:
        ValueError: where a source does not come before its layer.

    Assumptions: the first steps, small enough that all responds linearly; one datum or few, so that updates are of low
    rank; biases and attention's logits move no faster than what they add to.

    Reference: Yang & Hu 2021, 'Tensor Programs IV', section 3; Everett et al. 2024, 'Scaling exponents across
    parameterizations and optimizers', section 3.

    Example:
        >>> layers = [LayerScaling(0, 1, 0, 0, 0), LayerScaling(1, 0, 0, -0.5, 0, sources=(0,))]
        >>> coordinate_exponents(layers)[1]  # standard, two layers, Adam at a constant rate
        Coordinates(activation=0.0, change=1.0)
    """
    found: list[Coordinates] = []
    for place, layer in enumerate(layers):
        if any(not 0 <= source < place for source in layer.sources):
            raise ValueError(f"sources: got {layer.sources} of layer {place}; allowed: layers before it")
        coming = [found[source] for source in layer.sources]
        inside = max((one.activation for one in coming), default=0.0)
        data = inside if layer.data is None else layer.data
        moved = max((one.change for one in coming), default=-math.inf) + data - inside
        aligned = layer.fan_in if layer.fan_out == 0 else layer.fan_in / 2
        own = layer.multiplier + layer.update + layer.fan_in + data
        found.append(
            Coordinates(
                layer.multiplier + layer.weight + layer.fan_in / 2 + data,
                max(own, layer.multiplier + layer.weight + aligned + moved),
            )
        )
    return found


SCHEMES = {
    # by role (input, hidden, output): exponents of multiplier, weight and learning rate
    "adaptive": {
        "standard": ((0.0, 0.0, 0.0), (0.0, -0.5, 0.0), (0.0, -0.5, 0.0)),
        "NTK": ((0.0, 0.0, -1.0), (-0.5, 0.0, -1.0), (-0.5, 0.0, -1.0)),
        "muP": ((0.0, 0.0, 0.0), (0.0, -0.5, -1.0), (-1.0, 0.0, 0.0)),
        "u-muP": ((0.0, 0.0, -0.5), (-0.5, 0.0, -0.5), (-1.0, 0.0, 0.0)),
    },
    "gradient": {
        "standard": ((0.0, 0.0, 0.0), (0.0, -0.5, 0.0), (0.0, -0.5, 0.0)),
        "NTK": ((0.0, 0.0, 0.0), (-0.5, 0.0, 0.0), (-0.5, 0.0, 0.0)),
        "muP": ((0.5, -0.5, 0.0), (0.0, -0.5, 0.0), (-0.5, -0.5, 0.0)),
    },
}
"""Parametrisations by kind of optimiser: one whose updates do not scale with the gradient (Adam), or do (SGD)."""


def scheme_exponents(
    scheme: str, kind: str, shapes: Sequence[tuple[float, float]], sources: Sequence[tuple[int, ...]]
) -> list[Coordinates]:
    """``coordinate_exponents`` of a network in a parametrisation of ``SCHEMES``.

    A layer is an input where its fan-in is fixed, an output where only its fan-out is, and hidden elsewhere. Updates
    are the learning rate for an adaptive optimiser; for gradient descent ``rate x multiplier x backward signal x x``,
    whose backward signal is of order one at the output and ``n^(multiplier + weight)`` of that layer before it.

    Args:
        scheme: 'standard', 'NTK', 'muP', or 'u-muP' (adaptive alone). The NTK's rate for an adaptive optimiser is the
            largest of one exponent at which the output's change stays finite, 1/n.
        kind: 'adaptive' or 'gradient'.
        shapes: ``(fan_in, fan_out)`` exponents of each layer.
        sources: of each layer.

    Raises:
        ValueError: for a scheme or kind that there is not.

    Reference: Yang et al. 2022, 'Tensor Programs V', table 3; Blake et al. 2024, 'u-muP', table 2.

    Example:
        >>> found = scheme_exponents("muP", "adaptive", [(0, 1), (1, 1), (1, 0)], [(), (0,), (1,)])
        >>> [one.change for one in found], found[-1].activation
        ([0.0, 0.0, 0.0], -0.5)
    """
    if kind not in SCHEMES:
        raise ValueError(f"kind: got {kind!r}; allowed: {', '.join(SCHEMES)}")
    if scheme not in SCHEMES[kind]:
        raise ValueError(f"scheme: got {scheme!r}; allowed: {', '.join(SCHEMES[kind])}")
    table = SCHEMES[kind][scheme]
    multiplier_out, weight_out, _ = table[2]
    layers: list[LayerScaling] = []
    for (fan_in, fan_out), coming in zip(shapes, sources, strict=True):
        role = 0 if not fan_in else 1 if fan_out else 2
        multiplier, weight, rate = table[role]
        signal = 0.0 if role == 2 else multiplier_out + weight_out
        update = rate if kind == "adaptive" else rate + multiplier + signal
        layers.append(LayerScaling(fan_in, fan_out, multiplier, weight, update, None, tuple(coming)))
    return coordinate_exponents(layers)
