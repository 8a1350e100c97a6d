"""The central flow beside the optimiser that it averages: the first seed's run at the largest learning rate."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from dynamics.evolve import every
from dynamics.runs.figures import rival_style, theory_style
from dynamics.types import Array, Claim, Observable, PyTree, Readings, Record, View

from ._digits import ends_early, setting

SOURCE = "Cohen, Damian et al. 2024"
WINDOW = 10  # steps on either side of a running mean
APPROACH = 0.8  # of the threshold: the flow starts at the last reading below it before the threshold is crossed
SKETCH = 2**14  # numbers that stand for the parameters of a path, where these are more than four times as many


def run_central(config, descent: Record, ratio, make: Callable, simulate, earliest: int = 0) -> dict[str, Record]:
    """``{'discrete', 'central', 'still'}``: the path, its flow, and the flow whose oscillation is left out, for
    ``config.flow_steps`` from the last reading below 80 % of the threshold before it is crossed (before the largest
    reading where it is not); empty where no reading is above, the run ends before ``earliest``, or ``flow_steps`` is 0.

    Args:
        config: ``samples``, ``width``, ``depth``, ``eta``, ``seed`` and ``flow_steps``.
        descent: of ``train_grid``, for its steps.
        ratio: ``[T, etas, seeds]``, sharpness over its threshold.
        make: ``(L, eta) -> (optimiser, flow, begin)``, ``flow(**options)``, ``begin(state) -> CentralStart``.
        simulate: the time loop.
        earliest: step before which the flow does not start.
    """
    column = np.asarray(ratio)[:, np.argmax(config.eta), 0]
    if not config.flow_steps or not np.any(column > APPROACH):
        return {}
    begin, key = max(int(descent.step[approach(column)]), earliest), jax.random.key(config.seed)
    if begin > config.steps:
        return {}
    data, L, start = setting(config)
    optimiser, flow, first = make(L, max(config.eta))
    state, _ = simulate(optimiser, start(0), data, steps=begin, key=key, label="approach")
    steps, found = every(1, config.flow_steps), {}
    for name, dynamics in (("discrete", optimiser), ("central", flow()), ("still", flow(oscillation="none"))):
        read, begun = (read_path, state) if name == "discrete" else (read_flow, dynamics.init(first(state)))
        _, record = simulate(
            dynamics, None, data, train=Observable.of_view(read), steps=config.flow_steps, record_at=steps, key=key,
            state=begun, label=name,
        )  # fmt: skip
        found[name] = record._replace(step=record.step + begin, time=(record.step + begin) * dynamics.dt)
    return found


def approach(column: np.ndarray) -> int:
    """Index of the last entry of ``column [T]`` up to ``APPROACH`` before the first above 1, or before the largest; 0
    where there is none: many networks start nearer to the threshold than they are a little later."""
    crossed = np.flatnonzero(column > 1)
    before = column[: crossed[0] if crossed.size else np.nanargmax(column)]
    return int(np.max(np.flatnonzero(before <= APPROACH), initial=0))


def sketch(params: PyTree) -> Array:
    """The parameters as one vector ``[n]``; beyond ``4 SKETCH`` a linear map of them to ``[SKETCH]``.

    It adds each, with a random sign, to a random entry, and so keeps squared lengths but for a relative standard
    deviation of at most ``(2 / SKETCH)^(1/2)``, 1.1 % (count sketch: Charikar, Chen & Farach-Colton 2002).
    """
    flat = ravel_pytree(params)[0]
    if flat.size <= 4 * SKETCH:
        return flat
    place, sign = jax.random.split(jax.random.key(0))
    places = jax.random.randint(place, flat.shape, 0, SKETCH)
    return jnp.zeros(SKETCH, flat.dtype).at[places].add(flat * jax.random.rademacher(sign, flat.shape, flat.dtype))


def read_path(view: View) -> Readings:
    return {"params": sketch(view.params), "loss": view.loss("the path")(view.params, view.batch)}


def read_flow(view: View) -> Readings:
    """As ``read_path``, with the mean loss of the oscillating iterate, ``L + <H, Sigma> / 2``, and the sharpness."""
    found, state = read_path(view), view.state
    spread = 0.5 * jnp.sum(state.eigenvalues * jnp.diagonal(state.covariance))
    return {**found, "loss": found["loss"] + spread, "sharpness": state.eigenvalues[0]}


def central_claims(records: dict[str, Record], config, ratio, *, threshold: float | None = None) -> list[Claim]:
    """The flow against the running mean of the optimiser's path over the last third; its rival is the flow without
    oscillation, which is as far from the path as the oscillation moves that: in parameters, and in the log of the loss.

    What is claimed are shares of that, not distances per unit of travel: of those, a flow without oscillation stays
    below any bound that the other needs where the oscillation moves the path little.

    Args:
        records: of ``run_central``, and ``descent``.
        config, ratio: as there.
        threshold: of the largest rate, at which a balanced flow holds the sharpness, so that it is the run's that
            tests it; None where that is not claimed.
    """
    names = {
        "distance": "central flow: share of the oscillation's effect on the path that it explains",
        "loss": "central flow: share of the oscillation's effect on the loss that it explains",
        "sharp": "central flow: the run's sharpness over its threshold, against the flow's",
    }
    if threshold is None:
        del names["sharp"]
    missing = _missing(records, config, ratio)
    if missing is not None:
        short, note = missing
        if short:
            return [Claim.not_reached(name, SOURCE, config.steps, note) for name in names.values()]
        found = [Claim.not_applicable(name, SOURCE, note) for name in names.values()]
        return found if short is None else [c._replace(measured=np.nan, holds=False) for c in found]
    path, flow, still = (records[k].values for k in ("discrete", "central", "still"))
    inner = slice(WINDOW, -WINDOW)
    last = slice(-max(1, (config.flow_steps - 2 * WINDOW) // 3) - WINDOW, -WINDOW)
    mean = smooth(path["params"])
    travelled = np.linalg.norm(np.diff(mean[inner], axis=0), axis=1).sum()
    apart, rival = (np.linalg.norm(np.asarray(x["params"]) - mean, axis=1) / travelled for x in (flow, still))
    mean_loss = smooth(path["loss"])
    loss_apart, loss_rival = (
        np.abs(np.log(np.maximum(smooth(x["loss"]), 1e-30) / mean_loss))[last].mean() for x in (flow, still)
    )
    dropped = "oscillation dropped"

    def share(key: str, apart: float, rival: float, note: str) -> Claim:
        explained, none = (1 - x / rival if rival > 0 else np.nan for x in (apart, rival))
        return Claim.at_least(names[key], SOURCE, explained, 0.5, rivals={dropped: none}, note=note)

    note = (
        f"{travelled:.3g} travelled; of this {apart[last].mean():.2g} away, {rival[last].mean():.2g} without it; "
        f"at most {apart[inner].max():.2g} on the way, where the oscillation takes time to grow"
    )
    by_loss = f"mean |log ratio| of the loss {loss_apart:.2g}, {loss_rival:.2g} without it"
    found = {
        "distance": share("distance", apart[last].mean(), rival[last].mean(), note),
        "loss": share("loss", loss_apart, loss_rival, by_loss),
    }
    if threshold is not None:
        found["sharp"] = _sharpness_claim(names["sharp"], records, config, ratio, last, threshold)
    return [found[key] for key in names]


def _sharpness_claim(name: str, records: dict[str, Record], config, ratio, last: slice, threshold: float) -> Claim:
    """The mean of ``ratio`` over the run's readings in the steps ``last`` of the flow, against the flow's there."""
    steps, at = records["central"].step[last], records["descent"].step
    rows = (at >= steps[0]) & (at <= steps[-1])
    if not rows.any():
        return Claim.not_applicable(name, SOURCE, "no reading of the run's sharpness beside the flow's last third")
    level, above = (np.median(records[key].values["sharpness"][last]) / threshold for key in ("central", "still"))
    run = np.asarray(ratio)[rows, np.argmax(config.eta), 0].mean()
    rivals = {"oscillation dropped": above}
    return Claim.close(name, SOURCE, run, level, 0.1, rivals=rivals, note=f"{rows.sum()} readings")


def _missing(records: dict[str, Record], config, ratio) -> tuple[bool | None, str] | None:
    """``(whether the run was too short, note)`` of the claims without a flow; None where nobody asked for one."""
    if not config.flow_steps:
        return None, "the flow was left out"
    if "central" in records:
        return None
    column, quick = np.asarray(ratio)[:, np.argmax(config.eta), :1], type(config)()
    spans = config.steps * max(config.eta), quick.steps * min(quick.eta)
    if ends_early(column, APPROACH, *spans) or np.any(column > APPROACH):
        return True, "the run ends before the flow could start"
    return False, "the run never came near the threshold" if np.all(np.isfinite(column)) else "the run diverged"


def smooth(values, window: int = WINDOW) -> np.ndarray:
    """Running mean along axis 0 over ``window`` readings on both sides, fewer at the ends, the outermost two with half
    their weight: a whole number of periods of an oscillation of period 2."""
    values = np.asarray(values, float)
    total = np.cumsum(np.concatenate([np.zeros_like(values[:1]), values]), axis=0)

    def mean(before: int, after: int):
        last = np.minimum(np.arange(len(values)) + after + 1, len(values))
        first = np.maximum(np.arange(len(values)) - before, 0)
        return (total[last] - total[first]) / np.reshape(last - first, (-1,) + (1,) * (values.ndim - 1))

    return 0.5 * (mean(window, window - 1) + mean(window - 1, window))


def check_flow(config) -> None:
    """Raises ValueError unless ``flow_steps`` leave something of a path whose ends the running mean takes."""
    config.require(config.flow_steps == 0 or config.flow_steps > 2 * WINDOW, "flow_steps", f"0 or above {2 * WINDOW}")


def draw_central(picture: Figure, records: dict[str, Record], scale: float = 1.0) -> None:
    """Two flows' loss on the left of ``ratio_figure``, and their sharpness, times ``scale``, on the right."""
    if "central" not in records:
        return
    left, right = picture.axes
    bounds = [(axes.get_xlim(), axes.get_ylim()) for axes in picture.axes]
    for name, label, style in (
        ("still", "central flow, oscillation dropped", rival_style(1)),
        ("central", "central flow", theory_style(1)),
    ):
        flow = records[name]
        left.semilogy(flow.step, flow.values["loss"], **style, label=label)
        right.plot(flow.step[1:], flow.values["sharpness"][1:] * scale, **style, label=label)
    for axes, (_, (low, high)) in zip(picture.axes, bounds, strict=True):
        axes.set_ylim(low, high)
        axes.legend(fontsize=7)
