"""The coordinate check: how activations and their changes scale with width, layer by layer, for anyone's model."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from dynamics.arguments import check_counts
from dynamics.losses import half_mse
from dynamics.statistics import PowerLaw, power_law
from dynamics.theory.coordinates import SCHEMES, Coordinates, LayerScaling, coordinate_exponents, scheme_exponents
from dynamics.tools.one_width import READ, of_width
from dynamics.types import Array, Batch

TOLERANCE = 0.25
"""Distance of every layer's exponent from a scheme's, at most, for a verdict; as much again where its interval is as
wide as that. None is given where the intervals hold another scheme's exponents too."""
ROUNDINGS = 4.0
"""Changes below so many units of rounding of what changes are not told from it."""


class CoordinateCheck(NamedTuple):
    """What a coordinate check found.

    Attributes:
        layers: names, in the order of the forward pass.
        widths: the widths.
        sizes: root mean squares ``[steps, layers, seeds, widths]``: ``activation`` at the start, ``change`` of it since
            then, ``weight``, ``update`` (the weight's change), ``data`` (what the weight multiplies) and ``scale``.
        loss: ``[steps + 1, seeds, widths]``.
        activation, change: their power laws in the width, a layer each; the change's after the first step.
        predicted: exponents of both that the sizes of weights and updates imply; see ``coordinate_exponents``.
        schemes: what each parametrisation would have.
        deviation: largest distance from each scheme over the layers' changes.
        verdict: the scheme that all layers agree with, or 'none'.
        kind: of optimiser: 'adaptive' or 'gradient'.
        missed: weights that are met in a loop or a branch, and so were not read.
        notes: why a layer has no exponent, or none to be trusted; the verdict is 'none' then.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]
    sizes: Mapping[str, Float[np.ndarray, "steps layers seeds widths"]]
    loss: Float[np.ndarray, "steps1 seeds widths"]
    activation: tuple[PowerLaw, ...]
    change: tuple[PowerLaw, ...]
    predicted: tuple[Coordinates, ...]
    schemes: Mapping[str, tuple[Coordinates, ...]]
    deviation: Mapping[str, float]
    verdict: str
    kind: str
    missed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        wide = max(map(len, self.layers))
        lines = [f"{'layer':{wide}}  activation (predicted)          change (predicted)"]
        for name, start, moved, theory in zip(self.layers, self.activation, self.change, self.predicted):
            lines.append(f"{name:{wide}}  {start!s:22} ({theory.activation:5.2f})  {moved!s:22} ({theory.change:5.2f})")
        far = ", ".join(f"{name} {value:.2f}" for name, value in self.deviation.items())
        lines.append(f"optimiser: {self.kind}; largest distance of a change from {far}")
        lines += [f"note: {note}" for note in self.notes]
        lines.append(f"verdict: {self.verdict}")
        return "\n".join(lines + [f"not read, in a loop or a branch: {name}" for name in self.missed])


def coordinate_check(
    make: Callable[[int], tuple[Any, Any]],
    widths: Sequence[int],
    data: Batch,
    steps: int = 1,
    *,
    loss: Callable[..., Array] = half_mse,
    seeds: int = 4,
    key: PRNGKeyArray | None = None,
) -> CoordinateCheck:
    """Measures the exponents of each layer's activation and of its change with width, and says which parametrisation
    they are those of.

    A layer is a place where a weight (a leaf of two or more axes) meets an activation, found in the model's program,
    whatever library wrote it; multiplier and bias behind it belong to it. Exponents are fitted seed by seed to root
    mean squares over batch and units, with the interval that the seeds allow; those of changes to ``c n^p exp(q/n)``,
    for aligned sums outgrow random ones by ``sqrt(n)`` only and add up with them in squares. What is left of that is of
    second order, and not in the interval: .1 at most for a transformer of widths 64 to 512, where a pure power is .19
    off. The learning rate should be so small that the largest width responds linearly to the first step.

    Args:
        make: ``width -> (model, optimizer)``: a stax ``Model``, a flax module, or a function of a key that builds an
            equinox or nnx module; an optax transformation.
        widths: three or more, ascending; a factor 8 between the ends, say.
        data: ``x, y`` of one batch; integers ``x`` are tokens.
        steps: updates on it; the change is fitted after the first.
        loss: ``(f, y) -> scalar``.
        seeds: initialisations.
        key: of them; ``jax.random.key(0)`` unless given.

    Raises:
        TypeError: for what is no model, one with batch statistics or dropout, or what is no optimiser.
        ValueError: for too few widths, a number out of range, or layers that differ between widths.

    Assumptions: those of ``coordinate_exponents``; heads of a fixed size, for attention's logits are no layer.

    Cost: ``seeds x steps`` updates a width, and a compilation each.

    Reference: Yang et al. 2022, 'Tensor Programs V', appendix D.1.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from dynamics import stax
        >>> from dynamics.types import Batch
        >>> def make(width):
        ...     return stax.serial(stax.Dense(width), stax.Relu(), stax.Dense(1)), optax.sgd(0.1)
        >>> batch = Batch(jnp.sin(jnp.arange(12.0)).reshape(3, 4), jnp.ones((3, 1)))
        >>> coordinate_check(make, (64, 256, 1024), batch, seeds=3).verdict
        'NTK'
    """
    widths = tuple(widths) if np.iterable(widths) else (widths,)
    if all(isinstance(n, numbers.Integral) for n in widths):
        widths = tuple(map(int, widths))
    if len(widths) < 3 or any(not isinstance(n, int) or n < 1 for n in widths) or sorted(set(widths)) != list(widths):
        raise ValueError(f"widths: got {widths}; allowed: three or more ascending integers")
    check_counts(steps=steps, seeds=seeds)
    if not hasattr(data, "x") or not hasattr(data, "y"):
        raise TypeError(f"data: got {type(data).__name__}; allowed: Batch(x, y)")
    keys = jax.random.split(jax.random.key(0) if key is None else key, seeds)
    found = [of_width(make, width, data, steps, loss, keys) for width in widths]
    first = found[0]
    for width, one in zip(widths, found):
        if one.names != first.names or one.sources != first.sources:
            raise ValueError(
                f"make: got layers {one.names} at width {width}; allowed: those of {widths[0]}, {first.names}"
            )
    sizes = {name: np.stack([one.sizes[name] for one in found], -1) for name in READ}
    fans = np.stack([one.fans for one in found], -1)  # [layers, 2, widths]
    if np.all(fans == fans[..., :1]):
        raise ValueError(f"make: got layers {first.names} of the same sizes at all widths; allowed: some that grow")
    shapes = [(_exponent(widths, fan_in), _exponent(widths, fan_out)) for fan_in, fan_out in fans]
    laws = {name: [power_law(widths, rows) for rows in values[0]] for name, values in sizes.items()}
    laws["change"] = [power_law(widths, rows, correction=1.0) for rows in sizes["change"][0]]
    layers = [
        LayerScaling(*shapes[i], laws["scale"][i].exponent, _size(laws["weight"][i]), _size(laws["update"][i]),
                     laws["data"][i].exponent, first.sources[i])
        for i in range(len(first.names))
    ]  # fmt: skip
    kind, notes = first.kind(), _notes(first.names, widths, sizes, first.rounding)
    schemes = {name: tuple(scheme_exponents(name, kind, shapes, first.sources)) for name in SCHEMES[kind]}
    deviation, verdict = _judged(laws["change"], schemes)
    if notes:
        verdict = "none"
    return CoordinateCheck(
        first.names, widths, sizes, np.stack([one.loss for one in found], -1), tuple(laws["activation"]),
        tuple(laws["change"]), tuple(coordinate_exponents(layers)), schemes, deviation, verdict, kind, first.missed,
        notes,
    )  # fmt: skip


def _notes(names: Sequence[str], widths, sizes: Mapping[str, np.ndarray], rounding: np.ndarray) -> tuple[str, ...]:
    """What is wrong with a layer's change by the first step, a sentence each; ``rounding [2]`` a layer, relative."""
    out = []
    for i, name in enumerate(names):
        change, start, update, weight = (sizes[one][0, i] for one in ("change", "activation", "update", "weight"))
        at = [width for j, width in enumerate(widths) if not np.all(np.isfinite(change[:, j] + start[:, j]))]
        if at:
            out.append(f"{name}: not finite at width {', '.join(map(str, at))}; a smaller learning rate may help")
        elif not np.any(change):
            out.append(
                f"{name}: does not change in the first step, as behind it are zeros at the start, or it is frozen"
            )
        elif np.any(change < ROUNDINGS * rounding[i, 0] * start) or np.any(
            (update > 0) & (update < ROUNDINGS * rounding[i, 1] * weight)
        ):
            out.append(f"{name}: its change is within rounding; a larger learning rate, or float32, tells them apart")
    return tuple(out)


def _judged(change: Sequence[PowerLaw], schemes: Mapping[str, Sequence[Coordinates]]) -> tuple[dict[str, float], str]:
    """Distance from each scheme, and the nearest where every layer agrees with it."""
    measured = np.array([law.exponent for law in change])
    half = np.nan_to_num([0.5 * (law.high - law.low) for law in change])
    apart = {name: np.abs(measured - [one.change for one in table]) for name, table in schemes.items()}
    deviation = {name: float(np.max(values)) for name, values in apart.items()}
    known = {name: value for name, value in deviation.items() if math.isfinite(value)}
    if not known:
        return deviation, "none"
    nearest = min(known, key=lambda name: known[name])
    agrees = np.all(apart[nearest] <= TOLERANCE + np.minimum(half, TOLERANCE))
    others = [np.all(values <= half) for name, values in apart.items() if name != nearest]  # too few seeds to tell
    return deviation, nearest if agrees and not any(others) else "none"


def _exponent(widths: Sequence[int], sizes: Any) -> float:
    """Of a number of inputs or outputs; 0 where it hardly grows."""
    slope = float(np.polyfit(np.log(widths), np.log(sizes), 1)[0])
    return 0.0 if abs(slope) < 0.1 else slope


def _size(law: PowerLaw) -> float:
    """An exponent; that of zeros is -inf."""
    return law.exponent if math.isfinite(law.exponent) else -math.inf
