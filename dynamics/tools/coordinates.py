"""The coordinate check: how activations and their changes scale with width, layer by layer, for anyone's model."""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from dynamics.losses import half_mse
from dynamics.models import from_equinox, from_flax
from dynamics.observe.rank import path_name
from dynamics.program.layers import Layer, layers_of
from dynamics.program.layers import root_mean_square as size
from dynamics.statistics import PowerLaw, power_law
from dynamics.theory.coordinates import SCHEMES, Coordinates, LayerScaling, coordinate_exponents, scheme_exponents
from dynamics.types import Array, Batch, Model, StatefulModel

TOLERANCE = 0.25
"""Distance of every layer's exponent from a scheme's, at most, for a verdict; as much again where its interval is as
wide as that. None is given where the intervals hold another scheme's exponents too."""
ROUNDINGS = 4.0
"""Changes below so many units of rounding of what changes are not told from it."""
READ = ("activation", "scale", "data", "weight", "update", "change")


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
    for name, value in (("steps", steps), ("seeds", seeds)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: got {value!r}; allowed: an integer >= 1")
    if not hasattr(data, "x") or not hasattr(data, "y"):
        raise TypeError(f"data: got {type(data).__name__}; allowed: Batch(x, y)")
    keys = jax.random.split(jax.random.key(0) if key is None else key, seeds)
    found = [_of_width(make, width, data, steps, loss, keys, first=width == widths[0]) for width in widths]
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
    kind, notes = first.kind, _notes(first.names, widths, sizes, first.rounding)
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


class _OfWidth(NamedTuple):
    names: tuple[str, ...]
    sources: tuple[tuple[int, ...], ...]
    fans: np.ndarray
    kind: str
    missed: tuple[str, ...]
    sizes: dict[str, np.ndarray]
    loss: np.ndarray
    rounding: np.ndarray


def _of_width(make, width: int, data: Batch, steps: int, loss, keys, first: bool) -> _OfWidth:
    made = make(width)
    if not isinstance(made, tuple) or len(made) != 2 or not hasattr(made[1], "update"):
        raise TypeError(f"make: got {type(made).__name__} at width {width}; allowed: (model, optimizer), one of optax")
    model, optimizer = made
    apply, stacked = _started(model, data, keys)
    shape = getattr(
        jax.eval_shape(lambda p: loss(apply(jax.tree.map(lambda a: a[0], p), data.x), data.y), stacked), "shape", None
    )
    if shape != ():
        raise TypeError(f"loss: got {'no array' if shape is None else shape} of a batch; allowed: a scalar")

    def objective(params):
        return loss(apply(params, data.x), data.y)

    def read(params, start: Sequence[Layer] | None):
        _, layers, _ = layers_of(apply, params, data.x)
        return layers, jnp.stack([_sizes(one, other) for one, other in zip(layers, start or layers)])

    @jax.jit
    def run(stacked):
        def one(params):
            start, _ = read(params, None)

            def step(carry, _):
                params, state = carry
                value, gradient = jax.value_and_grad(objective)(params)
                change, state = optimizer.update(gradient, state, params)
                params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, change)
                return (params, state), (value, read(params, start)[1])

            (params, _), (losses, sizes) = jax.lax.scan(step, (params, optimizer.init(params)), None, steps)
            return jnp.append(losses, objective(params)), sizes  # [steps + 1], [steps, layers, 6]

        return jax.lax.map(one, stacked)

    @jax.jit
    def twice(params):
        """How much more a first update is of twice the gradient."""
        gradient, state = jax.grad(objective)(params), optimizer.init(params)
        one, two = (
            optimizer.update(jax.tree.map(lambda g, c=c: c * g, gradient), state, params)[0] for c in (1.0, 2.0)
        )
        return _norm(two) / _norm(one)

    params = jax.tree.map(lambda leaf: leaf[0], stacked)
    described: list[Any] = []

    def describe(params):
        described.extend(layers_of(apply, params, data.x)[1:])
        return ()

    jax.eval_shape(describe, params)
    layers, missed = described
    if not layers:
        where = " outside of loops and branches" if missed else ""
        raise ValueError(
            f"make: got a model without a weight that meets data{where}; allowed: one product, lookup at least"
        )
    paths = [path_name(path) for path, _ in jax.tree.leaves_with_path(params)]
    losses, sizes = jax.device_get(run(stacked))
    return _OfWidth(
        _names([paths[layer.leaves[0]] for layer in layers]), tuple(layer.sources for layer in layers),
        np.array([[layer.fan_in, layer.fan_out] for layer in layers]),
        ("adaptive" if float(twice(params)) < 1.5 else "gradient") if first else "",
        tuple(paths[leaf] for leaf in sorted(missed)),
        {name: np.moveaxis(sizes[..., i], 0, -1) for i, name in enumerate(READ)}, losses.T,
        np.array([[float(jnp.finfo(one.dtype).eps) for one in (layer.output, layer.weight)] for layer in layers]),
    )  # fmt: skip


def _sizes(now: Layer, start: Layer) -> Float[Array, " 6"]:
    """Root mean squares in the order of ``READ``; what is of the start alone is so at every step."""
    data = jnp.ones(()) if start.data is None else size(start.data)
    moved = size(now.weight - start.weight), size(now.output - start.output)
    return jnp.stack([size(start.output), jnp.asarray(start.scale), data, size(start.weight), *moved])


def _norm(tree: Any) -> Float[Array, ""]:
    return jnp.sqrt(sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(tree)))


def _names(paths: Sequence[str]) -> tuple[str, ...]:
    """Paths without their last word where that says no more than 'weight'; numbered where a weight is met twice."""
    short = [path.rpartition("/")[0] or path for path in paths]
    names = [one if short.count(one) == paths.count(path) else path for one, path in zip(short, paths)]
    met: Counter[str] = Counter()
    out = []
    for name in names:
        met[name] += 1
        out.append(name if met[name] == 1 else f"{name} ({met[name]})")
    return tuple(out)


def _started(model: Any, data: Batch, keys: Any) -> tuple[Callable[..., Array], Any]:
    """``(apply, parameters stacked over the keys)``."""
    shape, dtype = (-1, *np.shape(data.x)[1:]), jnp.result_type(data.x)
    if isinstance(model, Model):
        return model.apply, jax.vmap(lambda key: model.init(key, shape)[1])(keys)
    if isinstance(model, StatefulModel):
        raise TypeError("make: got a StatefulModel; allowed: a model without batch statistics and dropout")
    if _is_of("flax", model):
        return _started(_plain(from_flax(model, dtype=dtype)), data, keys)
    if not callable(model):
        raise TypeError(
            f"make: got the model {type(model).__name__}; allowed: a Model, a flax module, or key -> module"
        )
    if not _is_of("equinox", model) and _is_of("flax", model(keys[0])):
        each = [_plain(from_flax(model(key), dtype=dtype)) for key in keys]
        params = [one.init(key, shape)[1] for one, key in zip(each, keys)]
        return each[0].apply, jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    return _started(from_equinox(model, dtype=dtype), data, keys)


def _is_of(package: str, module: Any) -> bool:
    return any(base.__module__.startswith(f"{package}.") for base in type(module).__mro__)


def _plain(model: Any) -> Model:
    if isinstance(model, StatefulModel):
        raise TypeError("make: got a module with statistics or dropout; allowed: one without, dropout with rate 0 too")
    return model
