"""Spectral bias: networks learn frequency k at rate mu_k ~ k^-2, so that at time t the front stands at k ~ t^(1/2).

On the circle the tangent kernel of a ReLU network with biases is diagonal in frequency, with eigenvalues ``mu_k ~
k^-2``: under gradient descent ``r_k(t) = (1 - eta mu_k)^t r_k(0)``. Wide networks follow it, mode by mode. For a
target with amplitudes ``1/k`` the residual peaks at ``k* ~ t^(1/2)``, with height ``1/k*``; training the readout alone
has ``mu_k ~ k^-4`` and ``k* ~ t^(1/4)``. Without biases odd frequencies above 1 are not learned at all; of a target so
large that the weights move, fast frequencies come later than the kernel says.

Run time: about 15 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, stax
from dynamics.config import Count, NonNegative, Positive, Range
from dynamics.evolve import gradient_descent, log_steps
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.runs.figures import colour, measured_style, new_figure, rival_style
from dynamics.types import Batch, Claim, Objective, Observable, Record

SOURCE = "Basri, Jacobs, Kasten & Kritchman 2019; Rahaman et al. 2019, 'On the spectral bias of neural networks'"
SECONDS = 15


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 8
    """networks"""
    width: Annotated[int, Range(8)] = 1024
    """hidden units n"""
    points: Annotated[int, Range(32)] = 64
    """equal steps on the circle"""
    modes: Annotated[tuple[int, ...], Range(1, 12)] = (1, 2, 3, 4, 5, 6)
    """frequencies k of the target, all of one amplitude"""
    scale: Annotated[tuple[float, ...], Positive] = (0.01, 1.0)
    """that amplitude, ascending: where it is not small weights move, and fast frequencies come late"""
    b_std: Annotated[float, NonNegative] = 1.0
    """standard deviation of the hidden biases"""
    learning_rate: Annotated[float, Positive] = 0.3
    """learning rate eta"""
    steps: Annotated[int, Count] = 3000
    """updates"""

    @classmethod
    def large(cls) -> Config:
        """Wider and longer; three minutes of a core."""
        return cls(seeds=16, width=2048, modes=(1, 2, 3, 4, 5, 6, 8, 10), steps=10_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.scale) > 0)), "scale", "ascending values")


class Result(NamedTuple):
    """``records``: trained, ``amplitude [T, scale, biases, seed, modes]`` of the residual over its start; theory, ``[T,
    biases, modes]``, and ``mu [1, biases, modes]``; front, ``mu [1, kernel, k]`` on a fine circle."""

    config: Config
    records: dict[str, Record]


FINE = 4096
KERNELS = "ntk", "nngp"


def model(width: int, b_std: float) -> Any:
    return stax.serial(stax.Dense(width, 2**0.5, b_std), stax.Relu(), stax.Dense(1))


def circle(points: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(points) / points
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def eigenvalues(points: int, b_std: float, of: str) -> np.ndarray:
    """``mu_k``, k = 0, ..., points / 2, of the kernel over the number of points; in double precision."""
    with jax.enable_x64(True):
        x = jnp.asarray(circle(points))
        row = np.asarray(model(1, b_std).kernel(x[:1], x, of))[0]
    return np.fft.rfft(row).real / points


def run(config: Config, study=in_memory) -> Result:
    """Networks with and without biases, and their kernels."""
    x, k = jnp.asarray(circle(config.points), jnp.float32), np.asarray(config.modes)
    waves = jnp.asarray(np.cos(2 * np.pi * np.outer(np.arange(config.points), k) / config.points), jnp.float32)
    key, at = jax.random.key(config.seed), log_steps(config.steps, 80)

    def draw(lane):
        net = model(config.width, config.b_std if lane.biases else 0.0)
        params = net.init(jax.random.fold_in(key, lane.seed), x.shape)[1]
        target = lane.scale * waves.sum(1, keepdims=True)
        return Batch(x, net.apply(params, x) + target), params  # the residual starts at the target

    def make(lane):
        net = model(config.width, config.b_std if lane.biases else 0.0)
        return gradient_descent(Objective(net.apply, half_mse), config.learning_rate)

    def read(lane):
        net = model(config.width, config.b_std if lane.biases else 0.0)

        def amplitude(view):
            left = view.batch.y - net.apply(view.params, view.batch.x)
            return {"amplitude": 2 / lane.scale * waves.T @ left[:, 0] / config.points}

        return Observable.of_view(amplitude)

    axes = {"scale": config.scale, "biases": (0, 1), "seed": range(config.seeds)}
    how = {"steps": config.steps, "record_at": at, "key": key, "label": "trained", "loop": ("biases",)}
    trained = study(axes, draw, make, read, **how)
    mu = np.stack([eigenvalues(config.points, b, "ntk")[k] for b in (0.0, config.b_std)])
    theory = (1 - config.learning_rate * mu) ** np.asarray(at)[:, None, None]
    front = np.stack([eigenvalues(FINE, config.b_std, of)[: FINE // 8] for of in KERNELS])
    records = {"trained": trained}
    records["theory"] = trained._replace(values={"amplitude": theory, "mu": mu[None]}, axes={"biases": (0, 1)})
    once = np.zeros(1, int)
    records["front"] = Record(once, once, {"mu": front[None]}, {"kernel": KERNELS})
    return Result(config, records)


def half_times(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Steps to half the smallest target, with biases: networks ``[seed, modes]`` (NaN: not yet), and the kernel's."""
    record = result.records["trained"]
    rows, step = np.asarray(record.values["amplitude"], float)[:, 0, 1], np.asarray(record.step, float)
    found = np.full(rows.shape[1:], np.nan)
    for place in np.ndindex(found.shape):
        row = rows[(slice(None), *place)]
        below = np.flatnonzero(row < 0.5)
        if len(below) and below[0]:
            i, j = below[0] - 1, below[0]
            share = (row[i] - 0.5) / (row[i] - row[j])
            found[place] = step[i] + share * (step[j] - step[i])
    return found, np.log(0.5) / np.log1p(-result.config.learning_rate * result.records["theory"].values["mu"][0, 1])


def peaks(mu: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, the frequency at which ``exp(-mu_k t) / k`` is largest, and that value; within the resolved range."""
    k = np.arange(1, len(mu))
    t = np.geomspace(4 / mu[4], 0.5 / mu[len(mu) // 2], 40)
    left = np.exp(-np.outer(t, mu[1:])) / k
    return t, k[left.argmax(1)], left.max(1)


def claims(result: Result) -> list[Claim]:
    """Networks are independent; the kernel's spectrum has no error."""
    return [*trained_claims(result), moved_claim(result), *front_claims(result)]


def trained_claims(result: Result) -> list[Claim]:
    """Times to half by mode; 5 % are allowed for finite width (n = 1024)."""
    cfg = result.config
    names = (
        "steps to half the amplitude over the kernel's, every frequency",
        "power of k in the networks' steps to half, over k >= 3",
        "without biases: amplitude left at odd k >= 3, over that with biases",
    )
    odd = [i for i, k in enumerate(cfg.modes) if k % 2 and k > 1]
    found, exact = half_times(result)
    if (
        cfg.width < 256
        or cfg.seeds < 4
        or sum(k > 2 for k in cfg.modes) < 2
        or not odd
        or cfg.b_std == 0
        or np.isnan(found).any()
    ):
        note = "needs 4 networks of width 256, biases, two k >= 3 of which one is odd, and steps to learn them"
        return [Claim.not_applicable(name, "Basri et al. 2019", note) for name in names]
    logs = np.log(found)
    mean, error = logs.mean(0), np.hypot(logs.std(0, ddof=1) / cfg.seeds**0.5, 0.05)
    k = np.asarray(cfg.modes, float)
    late = k >= 3
    wrong = {
        "one rate for all": np.log(exact).mean() + 0 * k,
        "k^4, the readout alone": np.log(exact[0]) + 4 * np.log(k / k[0]),
        "the kernel without biases": np.log(
            np.log(2) / cfg.learning_rate / np.maximum(result.records["theory"].values["mu"][0, 0], 1e-9)
        ),
    }
    rivals = {key: (mean - value) / error for key, value in wrong.items()}
    slope = np.polyfit(np.log(k[late]), logs[:, late].T, 1)[0]
    expected = np.polyfit(np.log(k[late]), np.log(exact[late]), 1)[0]
    end = np.asarray(result.records["trained"].values["amplitude"], float)[-1, 0]  # [biases, seed, modes]
    left = end[0][:, odd].mean(-1)
    source = "Basri et al. 2019"
    note = f"kernel at these k: {expected:.2f}; 2 asymptotically"
    return [
        Claim.cells(names[0], source, (mean - np.log(exact)) / error, rivals=rivals),
        Claim.close(names[1], source, slope, expected, 0.1, rivals={"4": 4.0, "all alike": 0.0}, note=note),
        Claim.at_least(names[2], source, left, 0.8, rivals={"with biases": end[1][:, odd].mean(-1)}),
    ]


def moved_claim(result: Result) -> Claim:
    """A large target moves the weights by ``sqrt(sum 1/mu_k)``, features with them: the bias is stronger than the
    kernel's."""
    cfg, name = result.config, "amplitude left at the fastest frequency minus the kernel's, largest target"
    if cfg.scale[-1] < 1 or cfg.scale[0] > 0.02 or cfg.seeds < 4 or cfg.width > 2048 or max(cfg.modes) < 4:
        note = "needs targets of 0.02 or less and 1 or more, 4 networks of at most 2048 units"
        return Claim.not_applicable(name, "not in the papers", note)
    rows, at = np.asarray(result.records["trained"].values["amplitude"], float), int(np.argmax(cfg.modes))
    left = rows[-1, :, 1, :, at] - result.records["theory"].values["amplitude"][-1, 1, at]  # [scale, seed]
    rivals = {"the smallest target": left[0], "the kernel": 0.0}
    return Claim.at_least(name, "not in the papers", left[-1], 0.1, rivals=rivals)


def front_claims(result: Result) -> list[Claim]:
    """Exact kernels on a fine circle, target amplitudes 1/k."""
    (_, ntk, ntk_height), (t, nngp, _) = (peaks(mu) for mu in result.records["front"].values["mu"][0])
    power, readout = (
        np.polyfit(np.log(peaks(mu)[0]), np.log(peaks(mu)[1]), 1)[0] for mu in result.records["front"].values["mu"][0]
    )
    height = np.polyfit(np.log(ntk), np.log(ntk_height), 1)[0]
    del t, nngp
    return [
        Claim.close("power of t with which the residual's peak moves up", "derived here", power, 0.5, 0.03,
                    rivals={"readout alone": readout, "a kernel k^-1": 1.0}),
        Claim.close("readout alone: the same", "derived here", readout, 0.25, 0.03, rivals={"all weights": power}),
        Claim.close("power of k* in the residual's height there", "derived here", height, -1, 0.05,
                    rivals={"k*^-2": 2 * height, "none": 0.0}),
    ]  # fmt: skip


def figure(result: Result):
    """Residual by mode over the kernel's; steps to half; the front on a fine circle."""
    cfg, records = result.config, result.records
    fig, (left, middle, right) = new_figure(1, 3, width=3.9, height=3.5)
    step = np.asarray(records["trained"].step)
    rows, theory = np.asarray(records["trained"].values["amplitude"], float), records["theory"].values["amplitude"]
    large, rows = rows[:, -1], rows[:, 0]
    for i, k in enumerate(cfg.modes):
        style = measured_style(i, len(cfg.modes))
        left.plot(step[1:], rows[1:, 1, :, i].mean(1), ms=3, markevery=3, label=f"k = {k}", **style)
        left.plot(step[1:], theory[1:, 1, i], "-", color=style["color"], lw=1)
        if k % 2 and k > 1:
            left.plot(
                step[1:], rows[1:, 0, :, i].mean(1), label="odd k, no biases" if k == 3 else None, **rival_style(0)
            )
    left.plot(step[1:], large[1:, 1, :, -1].mean(1), ":", color="black", label=f"k = {cfg.modes[-1]}, large target")
    left.set(xscale="log", xlim=(0.02, None), xlabel="step", ylabel="amplitude of the residual; lines: kernel")
    left.legend(fontsize=7)
    found, exact = half_times(result)
    k = np.asarray(cfg.modes, float)
    for row in found:
        middle.plot(k, row, "o", color=colour(0, 2), mfc="none", ms=4, alpha=0.6)
    middle.plot(k, exact, "k-", label="tangent kernel")
    middle.plot(k, exact[-1] * (k / k[-1]) ** 2, label="k^2", **rival_style(0))
    middle.plot(k, exact[0] * (k / k[0]) ** 4, label="k^4", **rival_style(1))
    middle.set(xscale="log", yscale="log", xlabel="frequency k", ylabel="steps to half")
    middle.legend(fontsize=8)
    for i, (name, power) in enumerate(zip(("all weights", "readout alone"), (0.5, 0.25))):
        t, peak, _ = peaks(records["front"].values["mu"][0, i])
        right.plot(t, peak, ms=4, label=f"{name}, t^{power:g}", **measured_style(i, 3))
        right.plot(t, peak[-1] * (t / t[-1]) ** power, "k-", lw=0.8)
    right.set(xscale="log", yscale="log", xlabel="time", ylabel="frequency k* of the residual's peak")
    right.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
