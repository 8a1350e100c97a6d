"""Wide networks follow their kernel (Jacot, Gabriel & Hongler 2018; Lee et al. 2019).

A one-hidden-layer erf network of width n in NTK parametrisation is trained by full-batch gradient descent on
``(1/2P) sum (f - y)^2`` with learning rate ``1/lam_max(K_inf/P)``. As n grows it comes closer, in the largest test RMSE
along training, to its own linearisation as 1/n; to the descent with the infinite-width kernel from the same initial
outputs as ``n^(-1/2)``; its kernel changes by 1/n and starts ``n^(-1/2)`` from its limit. Both theories are the exact
discrete-step solution ``f_t = f_0 - K V (1 - (1 - eta w/P)^t)/w V^T (f_0 - y)``, which holds for any data and labels.
Its rivals are the same solution with the readout's part of the kernel alone, with the kernel of a linear network, or at
half the learning rate.

Run time: about 70 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, stax
from dynamics.config import Count
from dynamics.empirical import empirical_ntk_fn
from dynamics.evolve import Drawn, gradient_descent, log_steps
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.runs.figures import new_figure, rival_style
from dynamics.statistics import PowerLaw, kernel_distance, power_law
from dynamics.tasks.sphere import sphere_quadratic
from dynamics.theory.predict import gradient_descent_mse_steps
from dynamics.types import Claim, Model, Objective, Observable, Record

SOURCE = "Lee et al. 2019, 'Wide neural networks of any depth evolve as linear models under gradient descent'"
SECONDS = 70
LAWS = {  # reading: (title, predicted exponent, narrowest width of the fit, the reading that scales otherwise)
    # over all widths its power is -0.94, as the kernel of the narrowest changes by a seventh
    "own_linearisation": ("network - its own linearisation (test RMSE)", -1.0, 1024, "infinite_width"),
    "infinite_width": ("network - infinite-width kernel descent (test RMSE)", -0.5, 0, "kernel_change"),
    "kernel_change": ("kernel change |K_T - K_0| / |K_0|", -1.0, 0, "kernel_start"),
    "kernel_start": ("initial kernel |K_0 - K_inf| / |K_inf|", -0.5, 0, "kernel_change"),
}
RIVALS = {
    "readout": "only the readout learns (NNGP kernel)",
    "linear": "kernel of a linear network",
    "slow": "half the learning rate",
}


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 32
    """number of independent initial weights; the data are the same for all"""
    width: Annotated[tuple[int, ...], Count] = (64, 128, 256, 512, 1024, 2048, 4096)
    """hidden units n, ascending"""
    dim: Annotated[int, Count] = 8
    """input dimension d"""
    samples: Annotated[int, Count] = 16
    """training samples P, and as many test samples"""
    steps: Annotated[int, Count] = 600
    """gradient steps"""
    checkpoints: Annotated[int, config.Range(2, 200)] = 20
    """log-spaced steps at which outputs are compared"""

    @classmethod
    def large(cls) -> Config:
        """Up to the paper's width of 16384, at our task: the paper regresses two classes of CIFAR-10.

        About 5 minutes on two cores.
        """
        return cls(seeds=48, width=(64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.width) > 0)), "width", "ascending values")


class Result(NamedTuple):
    """``records['width n']``: values ``[T, seeds]``."""

    config: Config
    records: dict[str, Record]


@cache
def network(width: int) -> tuple[Model, Callable]:
    """One hidden erf layer, NTK parametrisation, no biases; and its kernel ``(x1, x2, params) -> [n, n]``."""
    model = stax.serial(stax.Dense(width), stax.Erf(), stax.Dense(1))
    return model, jax.jit(empirical_ntk_fn(model.apply))


def run(config: Config, study=in_memory) -> Result:
    """Trains ``seeds`` networks of each width as one program and compares each with its two theories."""
    count, key = config.samples, jax.random.key(config.seed)
    data = sphere_quadratic(key, count, count, config.dim)
    x, y = jnp.concatenate([data.train.x, data.test.x]), data.train.y
    known = infinite_theories(count, x)
    limit, eta = known["infinite"]
    record_at = log_steps(config.steps, config.checkpoints)

    @jax.jit
    def theory(kernel, eta, f0):
        """Test outputs ``[T, test]``."""
        predict_fn = gradient_descent_mse_steps(kernel[:count, :count], y, eta)
        outputs = predict_fn(record_at, f0[:count], f0[count:], kernel[count:, :count])
        assert outputs is not None
        return outputs[1][..., 0]

    def draw(lane) -> Drawn:
        model, ntk = network(lane.width)
        seeds = jax.random.split(jax.random.fold_in(key, lane.width), config.seeds)
        start = model.init(seeds[lane.seed], x.shape)[1]
        f0, own = model.apply(start, x), ntk(x, None, start)
        predicted = {name: theory(*one, f0) for name, one in known.items()}
        return Drawn(start, values={"kernel": own, "own": theory(own, eta, f0), "known": predicted})

    def read(lane, view):
        model, ntk = network(lane.width)
        f, now = model.apply(view.params, x), ntk(x[:count], None, view.params)

        def rmse(predicted):
            return jnp.sqrt(jnp.mean((f[count:, 0] - predicted[view.reading]) ** 2))

        return {
            "own_linearisation": rmse(lane.own),
            "infinite_width": rmse(lane.known["infinite"]),
            **{name: rmse(lane.known[name]) for name in RIVALS},
            "kernel_change": kernel_distance(now, lane.kernel[:count, :count]),
            "kernel_start": kernel_distance(lane.kernel, limit),
            "train_loss": half_mse(f[:count], y),
        }

    record = study(
        {"width": config.width, "seed": range(config.seeds)},
        draw=draw,
        make=lambda lane: gradient_descent(Objective(network(lane.width)[0].apply, half_mse), eta),
        read=lambda lane: Observable.of_view(partial(read, lane)),
        steps=config.steps,
        record_at=record_at,
        key=key,
        data=data,
        loop=("width",),
    )
    return Result(config, {f"width {n}": record.at(width=n) for n in config.width})


def infinite_theories(count: int, x) -> dict[str, tuple[jax.Array, float]]:
    """Kernel ``[2P, 2P]`` and learning rate: of the infinitely wide network, and of each of ``RIVALS``."""

    def rate(kernel) -> float:
        return count / float(jnp.linalg.eigvalsh(kernel[:count, :count])[-1])

    kernel, straight = network(1)[0].kernel, stax.serial(stax.Dense(1), stax.Dense(1)).kernel
    assert kernel is not None
    assert straight is not None
    limit, linear = kernel(x, None, "ntk"), straight(x, None, "ntk")
    linear *= jnp.trace(limit) / jnp.trace(linear)  # as fast on the whole
    eta = rate(limit)
    return {
        "infinite": (limit, eta),
        "readout": (kernel(x, None, "nngp"), eta),
        "linear": (linear, rate(linear)),
        "slow": (limit, 0.5 * eta),
    }


def law(result: Result, name: str, narrowest: int) -> PowerLaw | None:
    """The fitted power of n of a reading, at its largest along training; None where widths are too few."""
    widths = [n for n in result.config.width if n >= narrowest]
    return power_law(widths, peak(result, name, widths)) if len(widths) > 2 else None


def peak(result: Result, name: str, widths) -> np.ndarray:
    """``[seeds, widths]``: the largest reading along training."""
    return np.stack([np.max(result.records[f"width {n}"].values[name], axis=0) for n in widths], axis=1)


def claims(result: Result) -> list[Claim]:
    """Exponents seed by seed, each against the reading that has the other exponent; and the outputs of the widest."""
    out, seeds, source = [], result.config.seeds, "Lee et al. 2019, theorem 2.1 and figure 1"
    for name, (title, predicted, narrowest, other) in LAWS.items():
        title, fit, rival = f"{title} ~ n^p: p", law(result, name, narrowest), law(result, other, narrowest)
        if fit is None or rival is None:
            out.append(Claim.not_applicable(title, source, f"needs three widths of at least {narrowest}"))
            continue
        note = f"95 % interval {fit}, {fit.used} of {seeds} seeds"
        rivals = {f"as {other.replace('_', ' ')}": rival.slopes, "no effect of width": 0.0}
        out.append(Claim.close(title, source, fit.slopes, predicted, 0.1, rivals=rivals, note=note))
    widest = result.config.width[-1]
    title = f"n = {widest}: test outputs against infinite-width kernel descent, largest RMSE along training"
    if widest < 1024:
        return [*out, Claim.not_applicable(title, source, "needs a width of 1024 or more")]
    error, *wrong = (peak(result, name, [widest])[:, 0] for name in ("infinite_width", *RIVALS))
    rivals = dict(zip(RIVALS.values(), wrong))
    return [*out, Claim.at_most(title, source, error, 3 / widest**0.5, rivals=rivals, note="bound 3 n^(-1/2)")]


def figure(result: Result):
    """The four quantities against width with their predicted slopes, and one network beside both theories."""
    cfg = result.config
    fig, (scaling, along) = new_figure(1, 2, width=5.0, height=4.0)
    widths = np.asarray(cfg.width)
    for marker, shade, (name, (title, predicted, *_)) in zip("os^v", (0.0, 0.45, 0.2, 0.65), LAWS.items()):
        values = peak(result, name, cfg.width)
        middle = np.exp(np.mean(np.log(values), axis=0))
        scaling.plot(widths, middle, marker, color=str(shade), label=title)
        style = "-" if predicted == -1 else "--"
        scaling.plot(widths, middle[-1] * (widths / widths[-1]) ** predicted, style, color=str(shade), lw=1)
    for i, (name, label) in enumerate(RIVALS.items()):
        scaling.plot(widths, peak(result, name, cfg.width).mean(0), label=f"rival: {label}", **rival_style(i))
    scaling.set(xscale="log", yscale="log", xlabel="width n", title="markers: measured; lines: slope -1, dashes: -1/2")
    scaling.set_ylim(bottom=2e-4)
    scaling.legend(fontsize=7, loc="lower left")
    for shade, n in zip(np.linspace(0.7, 0.0, len(widths)), widths):
        record = result.records[f"width {n}"]
        middle = np.exp(np.mean(np.log(np.asarray(record.values["own_linearisation"])[1:]), axis=1))
        along.plot(np.asarray(record.time)[1:], middle, "-", color=str(shade), label=f"n = {n}")
    along.set(xscale="log", yscale="log", xlabel="time (learning rate x step)")
    along.set_ylabel("test RMSE, network - its linearisation")
    along.legend(fontsize=7)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
