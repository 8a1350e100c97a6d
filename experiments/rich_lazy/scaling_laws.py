"""A dynamical model of neural scaling laws (Bordelon, Atanasov & Pehlevan 2024).

Gradient flow on n random features (``dv/dt = -(A^T A/n) Lambda v``), or on P samples, of a task with ``lam_k = k^-b``
and ``lam_k w*_k^2 = k^-a``: the loss falls with time as ``t^(-(a-1)/b)`` until features or samples run out and it
rests at ``n^(-min(a-1, b))`` (features; the paper has 2b, as for samples, which a second task with a - 1 > b rejects)
or ``P^(-min(a-1, 2b))``; at fixed time the first correction is 1/n; and at the best size for each compute
``C = n t`` as ``C^(-(a-1)/(1+b))``. Theory is the inverse Laplace transform of ``sum c_k/(s + lam_k R(s))`` (and
its double transform for samples), evaluated on Talbot's contour; each draw's flow is solved by its eigenvectors.

Run time: about 100 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Range
from dynamics.evolve import every
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, ticks_at
from dynamics.statistics import power_law
from dynamics.theory import scaling_laws as theory
from dynamics.types import Claim, Estimate, Observable, Record

SOURCE = "Bordelon, Atanasov & Pehlevan 2024, 'A dynamical model of neural scaling laws'"
SECONDS = 100
LATE = 1e6  # time at which the resting loss is read
STEEP = (3.2, 1.5)  # a, b of a task whose a - 1 lies above b, so that features and samples rest with different powers


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 100
    """draws of features, samples and target signs: one draw's resting exponent scatters by 0.1"""
    size: Annotated[tuple[int, ...], Count] = (16, 32, 64, 128, 256, 512)
    """numbers of features n and of samples P, ascending"""
    modes: Annotated[int, Count] = 4096
    """eigenmodes M of the task"""
    a: Annotated[float, Range(1.0, open_low=True)] = 2.0
    """target power lam_k w*_k^2 = k^-a"""
    b: Annotated[float, Range(0.5)] = 1.5
    """spectrum lam_k = k^-b"""
    times: Annotated[int, Range(8, 1000)] = 30
    """log-spaced times from 0.1 to 1e4"""

    @classmethod
    def paper(cls) -> Config:
        """More modes, larger sizes."""
        return cls(size=(16, 32, 64, 128, 256, 512, 1024), modes=16384)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.size) > 0)), "size", "ascending values")
        self.require(max(self.size) <= self.modes // 4, "size", f"at most a quarter of the {self.modes} modes")


class Result(NamedTuple):
    """``records`` along times T: features, samples (``loss [T, sizes, seeds]``), their theories (``loss``, ``residual``
    ``[T, sizes]``), unlimited ``[T]``; steep (``loss [1, sizes, seeds]``, at rest)."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Exact gradient flow of every draw, beside the transfer-function theory."""
    lam, c = theory.power_law_spectrum(config.modes, config.a, config.b)
    times, last = jnp.append(jnp.geomspace(0.1, 1e4, config.times), LATE), config.times
    nodes = 24 if jax.config.jax_enable_x64 else 12  # type: ignore

    def read(label, draw, **axes) -> Record:
        """What ``draw`` gives, ``{name: [T]}``, along the times."""
        row = Observable.of_view(lambda view: jax.tree.map(lambda leaf: leaf[view.step], view.params))
        record = study(axes, draw, None, row, steps=last, record_at=every(1, last), data=(), label=label)
        return record._replace(time=np.asarray(times))

    def predicted(solve, lane):
        loss, residual = jax.device_get(solve(times, lam, c, float(lane.size), nodes=nodes))
        return {"loss": loss, "residual": np.full_like(loss, residual)}

    rest = Observable.of_view(lambda view: {"loss": view.params["loss"][0]})
    unlimited = jnp.sum(c * jnp.exp(-2 * lam * times[:, None]), -1)
    records = {"unlimited": Record(np.arange(last + 1), np.asarray(times), {"loss": np.asarray(unlimited)})}
    for stream, (name, flow, solve) in enumerate(
        (("features", feature_flow, theory.feature_loss), ("samples", sample_flow, theory.sample_loss))
    ):
        draw = draws(config, flow, jax.random.fold_in(jax.random.key(config.seed), stream), lam, c, times)
        records[name] = read(name, draw, size=config.size, seed=range(config.seeds))
        records[f"{name} theory"] = read(f"{name} theory", functools.partial(predicted, solve), size=config.size)
    steep = theory.power_law_spectrum(config.modes, *STEEP)
    draw = draws(
        config, lambda *task: feature_flow(*task)[-1:], jax.random.key(config.seed + 1), *steep, times[-1:] * jnp.inf
    )
    records["steep"] = study(
        {"size": config.size, "seed": range(min(config.seeds, 20))}, draw, None, rest, steps=0, data=(), label="steep"
    )
    return Result(config, records)


def draws(config: Config, flow, key, lam, c, times):
    """``lane -> population loss [T]``; the first n features (or samples) of a seed's draw are its smaller sizes."""

    @jax.jit
    def solve(key, lam, c, times):
        key_gaussian, key_sign = jax.random.split(key)
        gaussian = jax.random.normal(key_gaussian, (config.size[-1], len(lam)))
        sign = jax.random.rademacher(key_sign, lam.shape)
        return {n: flow(gaussian[:n], sign, lam, c, times) for n in config.size}

    of_seed = functools.cache(lambda seed: jax.device_get(solve(jax.random.fold_in(key, seed), lam, c, times)))
    return lambda lane: {"loss": of_seed(lane.seed)[lane.size]}


def feature_flow(gaussian, sign, lam, c, times):
    """``v^T Lambda v`` under ``dv/dt = -(A^T A/n) Lambda v``, in the eigenbasis of the n x n Gram matrix."""
    half, start = gaussian * jnp.sqrt(lam / len(gaussian)), jnp.sqrt(c) * sign
    values, modes = jnp.linalg.eigh(half @ half.T)
    seen = (modes.T @ (half @ start)) ** 2 / values
    rest = jnp.maximum(jnp.sum(c) - jnp.sum(seen), 0.0)
    return rest + jnp.sum(seen * jnp.exp(-2 * values * times[:, None]), -1)


def sample_flow(gaussian, sign, lam, c, times):
    """``sum lam (w - w*)^2`` under ``dw/dt = -(X^T X/P)(w - w*)``, in the eigenbasis of the P x P Gram matrix."""
    x, target = gaussian * jnp.sqrt(lam), jnp.sqrt(c / lam) * sign
    values, modes = jnp.linalg.eigh(x @ x.T)
    learnt = -jnp.expm1(-values / len(x) * times[:, None]) / values * (modes.T @ (x @ target))
    return jnp.sum(lam * (learnt @ modes.T @ x - target) ** 2, -1)


class Law(NamedTuple):
    """Abscissae ``x [n]`` and losses ``y [seeds, n]`` inside the window where one bottleneck binds."""

    x: np.ndarray
    y: np.ndarray


def laws(result: Result) -> dict[str, Law]:
    """The windows: features up to M/16, since beyond the finite number of modes shows; excess losses over their rest.

    The first correction in n drowns in the draws' own scatter (of order ``n^(-1/2)``), so its law is read off theory.
    """
    cfg, records = result.config, result.records
    t, sizes = records["features"].time[:-1], np.asarray(cfg.size, float)
    loss, sample = (np.asarray(records[name].values["loss"]) for name in ("features", "samples"))  # [T, sizes, seeds]
    early, scarce = (t >= 3) & (t <= 100), (sizes >= 32) & (sizes <= cfg.modes / 16)
    at = int(np.argmin(np.abs(t - 1.0)))
    first = records["features theory"].values["loss"][at] - records["unlimited"].values["loss"][at]
    compute = np.geomspace(sizes[0], sizes[scarce].max(initial=sizes[0]), 12) ** (1 + cfg.b)
    best = [theory.compute_frontier(t, sizes, loss[:-1, :, seed].T, compute) for seed in range(cfg.seeds)]
    steep = np.asarray(records["steep"].values["loss"])[0]  # [sizes, seeds]
    return {
        "time": Law(t[early], (loss[:-1, -1][early] - loss[-1, -1]).T),
        "size": Law(sizes[scarce], loss[-1][scarce].T),
        "size, a - 1 > b": Law(sizes[scarce], steep[scarce].T),
        "data": Law(sizes[scarce], sample[-1][scarce].T),
        "compute": Law(compute, np.asarray(best)),
        "first correction in n (theory)": Law(sizes, first[None]),
    }


def claims(result: Result) -> list[Claim]:
    cfg, out = result.config, []
    for name in ("features", "samples"):
        wide = np.asarray(cfg.size) >= 128
        title = f"{name}: dynamics against theory for n >= 128, mean relative deviation"
        if not wide.any() or cfg.seeds < 10:
            out.append(Claim.not_applicable(title, "figure 2", "needs sizes of 128 or more and 10 draws"))
            continue
        measured = result.records[name].values["loss"][:, wide].mean(-1)
        error = np.abs(measured / result.records[f"{name} theory"].values["loss"][:, wide] - 1)
        out.append(Claim.at_most(title, "figure 2", error.mean(), 0.03, note=f"largest {error.max():.3f}"))
    predicted = theory.exponents(cfg.a, cfg.b)._asdict() | {"first correction in n (theory)": 1.0}
    predicted["size, a - 1 > b"] = theory.exponents(*STEEP).size
    rivals = {"size, a - 1 > b": {"min(a-1, 2b), as for samples": theory.exponents(*STEEP).data}}
    solved = all(np.isfinite(record.values["loss"]).all() for record in result.records.values())
    for name, (x, y) in laws(result).items():
        title = f"{name}: loss falls with exponent"
        if np.unique(x).size < 3 or (solved and not np.isfinite(y).all()):  # a flow that diverged fails its claim
            out.append(Claim.not_applicable(title, "section 4", "needs three points inside the window of this law"))
            continue
        fit = power_law(x, y)
        measured = Estimate(-fit.exponent, fit.error, fit.used) if fit.used > 1 else -fit.exponent
        options = {"rivals": rivals.get(name), "note": f"slope {fit}"}
        out.append(Claim.close(title, "section 4", measured, predicted[name], 0.05, **options))
    return out


def figure(result: Result):
    """Loss against time for each size, resting loss against size, and the compute frontier, over theory."""
    cfg, records = result.config, result.records
    fig, (along, rest, frontier) = new_figure(1, 3, width=4.0, height=3.8)
    t = records["features"].time[:-1]
    for i, n in enumerate(cfg.size):
        mean, style = records["features"].values["loss"][:-1, i].mean(-1), measured_style(i, len(cfg.size))
        along.plot(t, mean, ms=3, label=f"n = {n}", **style)
        along.plot(t, records["features theory"].values["loss"][:-1, i], "-", color=style["color"], lw=1)
        frontier.plot(t * n, mean, "-", color=style["color"], lw=1)
    along.plot(t, records["unlimited"].values["loss"][:-1], "k--", lw=1, label="unlimited")
    along.set(xscale="log", yscale="log", xlabel="time t", ylabel="loss; lines: transfer functions")
    along.legend(fontsize=7)
    for name, marker in (("features", "o"), ("samples", "s")):
        rest.plot(cfg.size, records[name].values["loss"][-1].mean(-1), marker, color="black", mfc="white", label=name)
        rest.plot(cfg.size, records[f"{name} theory"].values["loss"][-1], "-", color="black", lw=1)
    rest.set(xscale="log", yscale="log", xlabel="features n or samples P", ylabel=f"loss at t = {LATE:g}")
    ticks_at(rest.xaxis, cfg.size)
    rest.legend(fontsize=8)
    compute, best = laws(result)["compute"]
    slope = theory.exponents(cfg.a, cfg.b).compute
    best = np.exp(np.log(best).mean(0))
    frontier.plot(compute, best[0] * (compute / compute[0]) ** -slope, "k--", label=f"C^-{slope:.3f}")
    frontier.set(xscale="log", yscale="log", xlabel="compute C = n t", ylabel="loss")
    frontier.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
