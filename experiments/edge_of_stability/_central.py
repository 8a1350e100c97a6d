"""The central flow beside the optimiser that it averages: the first seed's run at the largest learning rate."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from dynamics.evolve import every
from dynamics.runs.figures import theory_style
from dynamics.types import Claim, Observable, Readings, Record, View
from experiments.edge_of_stability._digits import ends_early, setting

SOURCE = "Cohen, Damian et al. 2024"
WINDOW = 10  # steps on either side of a running mean
APPROACH = 0.8  # of the threshold: the flow starts at the reading before the first above it


def run_central(config, descent: Record, ratio, make: Callable, simulate, earliest: int = 0) -> dict[str, Record]:
    """``{'discrete', 'central'}``: both paths for ``config.flow_steps`` from the reading before the first above 80 %
    of the threshold; empty where the run ends before that, or ``flow_steps`` is 0.

    Args:
        config: ``samples``, ``width``, ``depth``, ``eta``, ``seed`` and ``flow_steps``.
        descent: of ``train_grid``, for its steps.
        ratio: ``[T, etas, seeds]``, sharpness over its threshold.
        make: ``(L, eta) -> (optimiser, flow, begin)``, ``begin(state) -> CentralStart``.
        simulate: the time loop.
        earliest: step before which the flow does not start.
    """
    above = np.flatnonzero(np.asarray(ratio)[:, np.argmax(config.eta), 0] > APPROACH)
    if not config.flow_steps or not above.size:
        return {}
    begin, key = max(int(descent.step[max(above[0] - 1, 0)]), earliest), jax.random.key(config.seed)
    if begin > config.steps:
        return {}
    data, L, start = setting(config)
    optimiser, flow, first = make(L, max(config.eta))
    state, _ = simulate(optimiser, start(0), data, steps=begin, key=key, label="approach")
    steps, found = every(1, config.flow_steps), {}
    for name, dynamics, initial, read in (
        ("discrete", optimiser, state, read_path),
        ("central", flow, flow.init(first(state)), read_flow),
    ):
        _, record = simulate(
            dynamics, None, data, train=Observable.of_view(read), steps=config.flow_steps, record_at=steps, key=key,
            state=initial, label=name,
        )  # fmt: skip
        found[name] = record._replace(step=record.step + begin, time=(record.step + begin) * dynamics.dt)
    return found


def read_path(view: View) -> Readings:
    return {"params": ravel_pytree(view.params)[0], "loss": view.loss("the path")(view.params, view.batch)}


def read_flow(view: View) -> Readings:
    """As ``read_path``, with the mean loss of the oscillating iterate, ``L + <H, Sigma> / 2``, and the sharpness."""
    found, state = read_path(view), view.state
    spread = 0.5 * jnp.sum(state.eigenvalues * jnp.diagonal(state.covariance))
    return {**found, "loss": found["loss"] + spread, "sharpness": state.eigenvalues[0]}


def central_claims(records: dict[str, Record], config, ratio) -> list[Claim]:
    """Distance of the flow to the running mean of the optimiser's path, and its mean loss.

    Args:
        records: of ``run_central``.
        config, ratio: as there.
    """
    name = "central flow: distance to the path's running mean, per unit that it travels"
    second = "central flow: mean loss over the path's, along it"
    if not config.flow_steps:
        return [Claim.not_applicable(name, SOURCE, "the flow was left out")]
    if "central" not in records:
        column, quick = np.asarray(ratio)[:, np.argmax(config.eta), :1], type(config)()
        spans = config.steps * max(config.eta), quick.steps * min(quick.eta)
        if ends_early(column, APPROACH, *spans) or np.any(column > APPROACH):
            return [Claim.not_applicable(name, SOURCE, "the run ends before the flow could start")]
        note = "the run never came near the threshold" if np.all(np.isfinite(column)) else "the run diverged"
        missing = Claim.between(second, SOURCE, np.nan, 0.9, 1.1, note=note)
        return [Claim.at_most(name, SOURCE, np.nan, 0.1, note=note), missing]
    flow, path = (records[k].values for k in ("central", "discrete"))
    mean, inner = smooth(path["params"])[WINDOW:-WINDOW], slice(WINDOW, -WINDOW)
    travelled = np.linalg.norm(np.diff(mean, axis=0), axis=1).sum()
    apart, itself = (
        np.linalg.norm(np.asarray(x["params"])[inner] - mean, axis=1).max() / travelled for x in (flow, path)
    )
    loss = np.asarray(flow["loss"])[inner] / smooth(path["loss"])[inner]
    scatter = f"one step off by {np.median(np.abs(loss - 1)):.2g} in the median: the oscillation's own fluctuation"
    note = f"{travelled:.3g} travelled; the oscillating path itself {itself:.2g} from its mean"
    return [
        Claim.at_most(name, SOURCE, apart, 0.1, note=note),
        Claim.between(second, SOURCE, loss.mean(), 0.9, 1.1, note=scatter),
    ]


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


def draw_central(picture: Figure, records: dict[str, Record], scale: float) -> None:
    """The flow's loss on the left of ``ratio_figure``, and its sharpness, times ``scale``, on the right."""
    if "central" in records:
        flow, (left, right) = records["central"], picture.axes
        left.semilogy(flow.step, flow.values["loss"], **theory_style(1), label="central flow")
        right.plot(flow.step[1:], flow.values["sharpness"][1:] * scale, **theory_style(1), label="central flow")
        left.legend()
        right.legend()
