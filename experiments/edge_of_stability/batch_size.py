"""Batch size and the largest stable learning rate: curvature of batch Hessians (Granziol, Zohren & Roberts 2020).

A batch of B samples has ``H_B = (1/B) sum_i H_i``, whose noise lifts its top eigenvalue above lambda_1 of H. The paper
takes this noise as Gaussian and small; here classes make the top eigenvalues nearly equal, and a few samples have
Hessians as large as B lambda_1. So the theory keeps the noise in full in the span U of the top k eigenvectors of H
(eigenvalues Lambda), and every sample's excursions out of it to all orders, as if samples met only in U:

    lambda_B = lambda_max(Lambda + (1/B) sum_(i in batch) T_i(lambda_B) - (1/n) sum_i U^T H_i U),
    T_i(x) = U^T H_i (1 - Q H_i / (B x))^-1 U,   Q = 1 - U U^T,

with ``H_i = J_i^T J_i`` (Gauss-Newton), averaged over batches. To lowest order and k = 1 it is the paper's lift, v / (B
lambda_1). The largest stable rate ``2/lambda_B`` grows as sqrt(B) at small B and saturates at 2/lambda_1: neither the
linear nor the square-root rule holds throughout (figures 1 and 5). Measured on digits along gradient descent.

Run time: about 50 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from dynamics import config, linalg, operators
from dynamics.config import Count, Positive
from dynamics.evolve import Drawn, gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.runs.figures import measured_style, new_figure, theory_style
from dynamics.types import Claim, Objective, Record
from experiments.edge_of_stability._digits import setting

SOURCE = (
    "Granziol, Zohren & Roberts 2020, 'Learning rates as a function of batch size: a random matrix theory approach to "
    "neural network training'"
)
SECONDS = 50


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 1
    """number of initialisations"""
    eta: Annotated[float, Positive] = 0.3
    """learning rate eta of the training before the measurement"""
    steps: Annotated[int, Count] = 300
    """gradient steps before the measurement"""
    batch_size: Annotated[tuple[int, ...], Count] = (4, 8, 16, 32, 64, 128, 256)
    """batch sizes B, ascending"""
    draws: Annotated[int, config.Range(2)] = 16
    """batches drawn at the largest B; smaller ones are drawn until as many samples are"""
    rank: Annotated[int, Count] = 20
    """eigenvectors k of H among which the theory lets samples meet"""
    samples: Annotated[int, config.Range(20, 1797)] = 300
    """training digits n"""
    width: Annotated[int, Count] = 50
    """tanh units of a hidden layer"""
    depth: Annotated[int, Count] = 2
    """hidden layers"""

    @classmethod
    def paper(cls) -> Config:
        """1500 digits, five seeds."""
        return cls(samples=1500, seeds=5, width=200, batch_size=(4, 8, 16, 32, 64, 128, 256, 512, 1024), draws=50)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.batch_size) > 0)), "batch_size", "ascending values")
        self.require(max(self.batch_size) <= self.samples, "batch_size", f"at most the {self.samples} samples")


class Result(NamedTuple):
    """``records['batch']``: measured mean top eigenvalue, its error, and the theory, ``[1, sizes, seeds]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Trains each seed, then measures the extremes of batch Hessians."""
    (data, L, start), key = setting(config), jax.random.key(config.seed)
    trained = study(
        {"seed": range(config.seeds)},
        draw=lambda lane: start(lane.seed),
        make=lambda lane: gradient_descent(L, config.eta),
        read=[lambda params, batch: {"params": ravel_pytree(params)[0]}],
        steps=config.steps, record_at=[config.steps], key=key, data=data, label="descent",
    )  # fmt: skip
    unravel, scattered = ravel_pytree(start(0))[1], jax.jit(partial(scattering, L.apply, config.rank))

    def draw(lane):
        params = unravel(jnp.asarray(trained.values["params"][-1, lane.seed]))
        found = scattered(params, data.train, jax.random.fold_in(key, lane.seed))
        return Drawn(params, values=dict(zip(("top", "within", "outside"), found)))

    record = study(
        {"batch_size": config.batch_size, "seed": range(config.seeds)},
        draw,
        make=None,
        read=lambda lane: [measured(config, L, lane)],
        steps=0, key=key, data=data, label="batch", loop=("batch_size",),
    )  # fmt: skip
    at = np.array([config.steps])
    return Result(config, {"batch": record._replace(step=at, time=at * config.eta)})


def measured(config: Config, L: Objective, lane):
    """Reads the mean top eigenvalue of ``H_B`` over draws, with its error, beside the theory on the same batches."""
    draws = config.draws * max(config.batch_size) // lane.batch_size
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), lane.seed), lane.batch_size)

    def read(params, batch):
        def draw(key):
            rows = jax.random.permutation(key, config.samples)[: lane.batch_size]
            part = jax.tree.map(lambda leaf: leaf[rows], batch)
            matvec, dimension, dtype, _ = operators.hessian(L, params, part)
            start = jax.random.normal(jax.random.fold_in(key, 1), (dimension,), dtype)
            return linalg.extreme_eigenvalues(matvec, start, 25)[0].value

        top = linalg.mean_and_error(jax.lax.map(draw, jax.random.split(key, draws), batch_size=4))
        theory = lifted(lane.top, lane.within, lane.outside, key, lane.batch_size, draws)
        return {"batch_top": top.value, "batch_top_error": top.error, "theory": theory, "full": lane.top[0]}

    return read


def scattering(apply, rank: int, params, batch, key):
    """Lambda ``[k]``; for every sample the rows of ``J_i U`` ``[n, c, k]`` in the basis in which ``J_i Q J_i^T`` is
    diagonal, and that diagonal ``[n, c]``."""
    matvec, size, dtype, _ = operators.hessian(Objective(apply, half_mse), params, batch)
    pairs = linalg.eigenpairs(matvec, jax.random.normal(key, (size,), dtype), rank)

    def one(x):
        rows = jax.vmap(lambda leaf: ravel_pytree(leaf)[0])(jax.jacrev(lambda p: apply(p, x[None])[0])(params))
        within = rows @ pairs.vectors.T
        outside, basis = jnp.linalg.eigh(rows @ rows.T - within @ within.T)
        return basis.T @ within, jnp.maximum(outside, 0)

    within, outside = jax.lax.map(one, batch.x, batch_size=10)
    return pairs.values, within, outside


@partial(jax.jit, static_argnames=("size", "draws"))
def lifted(top, within, outside, key, size: int, draws: int = 100):
    """The mean lambda_B of the module's equation over ``draws`` batches of ``size``."""
    n = within.shape[0]
    base = jnp.diag(top) - jnp.einsum("nci,ncj->ij", within, within) / n

    def solve(key):
        rows = jax.random.permutation(key, n)[:size]
        a, poles = within[rows].reshape(-1, within.shape[-1]), outside[rows].ravel() / size

        def halve(_, bracket):  # the right side falls with x above the largest pole, where it is infinite
            low, high = bracket
            x = 0.5 * (low + high)
            excess = jnp.linalg.eigvalsh(base + (a.T * (x / (x - poles) / size)) @ a)[-1] > x
            return jnp.where(excess, x, low), jnp.where(excess, high, x)

        widest = jnp.max(poles) + top[0] + jnp.sum(a**2) / size
        return jax.lax.fori_loop(0, 30, halve, (jnp.maximum(jnp.max(poles), 0), widest))[1]

    return jnp.mean(jax.lax.map(solve, jax.random.split(key, draws)))


def claims(result: Result) -> list[Claim]:
    cfg, values = result.config, result.records["batch"].values
    sizes = np.asarray(cfg.batch_size)
    measured, theory, full = (values[name][0].mean(-1) for name in ("batch_top", "theory", "full"))
    found = []
    name = "top eigenvalue of batch Hessians against theory: largest relative error"
    found.append(Claim.at_most(name, "theorem 1", np.abs(measured / theory - 1).max(), 0.1))
    if len(sizes) < 4:
        return [*found, Claim.not_applicable("scaling of the largest stable rate", "figure 5", "needs four sizes")]
    slope = np.diff(np.log(1 / measured)) / np.diff(np.log(sizes))
    found.append(Claim.between("exponent of 2/lambda_1(H_B) at the smallest B", "figure 5", slope[0], 0.3, 0.7))
    found.append(Claim.at_most("exponent of 2/lambda_1(H_B) at the largest B", "figure 5", slope[-1], 0.15))
    ratio = measured[-1] / full[-1]
    found.append(Claim.between("lambda_1 of the largest batch over the full one", "figure 1", ratio, 0.98, 1.15))
    return found


def figure(result: Result) -> Figure:
    """Largest stable rate against batch size: measured, theory, and the linear and square-root rules."""
    cfg, values = result.config, result.records["batch"].values
    sizes = np.asarray(cfg.batch_size)
    picture, axes = new_figure()
    top, error, theory, full = (values[name][0].mean(-1) for name in ("batch_top", "batch_top_error", "theory", "full"))
    axes.errorbar(sizes, 2 / top, yerr=2 * error / top**2, **measured_style(0, 2), label=r"$2/\lambda_1(H_B)$ measured")
    axes.plot(sizes, 2 / theory, **theory_style(), label="theory")
    axes.plot(sizes, 2 / full, **theory_style(1), label="full batch")
    axes.plot(sizes, 2 / top[0] * sizes / sizes[0], **theory_style(2), label="linear rule")
    axes.plot(sizes, 2 / top[0] * (sizes / sizes[0]) ** 0.5, **theory_style(3), label="square-root rule")
    axes.set(xlabel="batch size B", ylabel=r"largest stable learning rate", xscale="log", yscale="log")
    axes.set_ylim(None, 4 / full[0])
    axes.legend()
    return picture


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
