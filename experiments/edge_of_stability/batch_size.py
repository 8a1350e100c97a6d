"""Batch size and the largest stable learning rate: curvature of batch Hessians (Granziol, Zohren & Roberts 2020).

A batch of B samples has ``H_B = (1/B) sum_i H_i``, whose noise lifts its top eigenvalue above lambda_1 of H. The paper
takes this noise as Gaussian and small; here classes make the top eigenvalues nearly equal, and a few samples have
Hessians as large as B lambda_1. So the theory keeps the noise in full in the span U of the top k eigenvectors of H
(eigenvalues Lambda), and every sample's excursions out of it to all orders, as if samples met only in U:

    lambda_B = lambda_max(Lambda + (1/B) sum_(i in batch) T_i(lambda_B) - (1/n) sum_i U^T H_i U),
    T_i(x) = U^T H_i (1 - Q H_i / (B x))^-1 U,   Q = 1 - U U^T,

with ``H_i = J_i^T J_i`` (Gauss-Newton), averaged over batches. To lowest order and k = 1 it is the paper's lift
(theorem 1),

    lambda_B = lambda_1 + v / (b lambda_1) where v < b lambda_1^2, else 2 sqrt(v / b),   1/b = 1/B - 1/n,

with ``v = E|(H_i - H) u_1|^2``, which the paper takes from all elements alike, ``E|H_i - H|_F^2 / P``. Both are rivals:
the former lacks a quarter of lambda_B at small B, the latter hardly lifts at all.

The largest stable rate of SGD, ``2/lambda_B``, grows as sqrt(B) at small B and saturates at 2/lambda_1: the abstract's
linear rule holds nowhere here (figures 1 and 5). Adam's, ``(2 + 2 b1)/((1 - b1) lambda_max(P^-1 H_B))`` at its own
preconditioner, grows by a power of .28 to .45, by data and network, up to the full batch: below the paper's square-root
rule and far from a linear one. Measured on digits along full-batch training.

Run time: about 70 s for the quick preset on two CPU cores.
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
from dynamics.evolve import Drawn, adam, gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style
from dynamics.types import Claim, Objective, Observable, Record

from ._digits import held_out, learnt_claim, setting

SOURCE = (
    "Granziol, Zohren & Roberts 2020, 'Learning rates as a function of batch size: a random matrix theory approach to "
    "neural network training'"
)
SECONDS = 70
B1 = 0.9  # Adam's decay of the first moment


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
    adam_eta: Annotated[float, Positive] = 0.001
    """learning rate of Adam's training, as long"""
    draws: Annotated[int, config.Range(2)] = 8
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
    def large(cls) -> Config:
        """600 digits, three seeds, width 100: three minutes of a core. The paper has VGG-16 and WideResNet on CIFAR-100
        and ImageNet."""
        return cls(samples=600, seeds=3, width=100, batch_size=(4, 8, 16, 32, 64, 128, 256, 512))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.batch_size) > 0)), "batch_size", "ascending values")
        self.require(max(self.batch_size) <= self.samples, "batch_size", f"at most the {self.samples} samples")


class Result(NamedTuple):
    """``records['batch']``: measured mean top eigenvalue, its error, the theory and both rivals, ``[1, sizes, seeds]``;
    ``['adam']``: measured of the preconditioned Hessian, at the smallest, the middle and the largest size;
    ``['descent']`` and ``['adam descent']``: the end of training, ``[1, seeds]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Trains each seed by both optimisers, then measures the extremes of batch Hessians."""
    (data, L, start), key = setting(config), jax.random.key(config.seed)
    unravel, scattered = ravel_pytree(start(0))[1], jax.jit(partial(scattering, L.apply, config.rank))

    def trained(label, dynamics, *reads):
        return study(
            {"seed": range(config.seeds)},
            draw=lambda lane: start(lane.seed),
            make=lambda lane: dynamics,
            read=[lambda params, batch: {"params": ravel_pytree(params)[0]}, *reads],
            test=[] if data.test is None else [held_out(L)],
            steps=config.steps, record_at=[config.steps], key=key, data=data, label=label,
        )  # fmt: skip

    def measure(label, sizes, draw, read):
        found = study(
            {"batch_size": sizes, "seed": range(config.seeds)},
            draw,
            make=None,
            read=read,
            steps=0, key=key, data=data, label=label, loop=("batch_size",),
        )  # fmt: skip
        at = np.array([config.steps])
        return found._replace(step=at, time=at * config.eta)

    plain = trained("descent", gradient_descent(L, config.eta))

    def draw(lane):
        params = unravel(jnp.asarray(plain.values["params"][-1, lane.seed]))
        found = scattered(params, data.train, jax.random.fold_in(key, lane.seed))
        return Drawn(params, values=dict(zip(("top", "within", "outside"), found)))

    def read(lane):
        theory = partial(predicted, config, lane)
        return [top_of_batches(config, lane, lambda params, part: operators.hessian(L, params, part)), theory]

    def preconditioner(view):
        return {"p": ravel_pytree(view.dynamics.preconditioner(view.state))[0]}

    moved = trained("adam descent", adam(L, config.adam_eta, b1=B1), Observable.of_view(preconditioner))

    def draw_adam(lane):
        params, p = (unravel(jnp.asarray(moved.values[name][-1, lane.seed])) for name in ("params", "p"))
        return Drawn(params, values={"p": p})

    def read_adam(lane):
        def operator(params, part):
            return operators.preconditioned(operators.hessian(L, params, part), lane.p)

        return [top_of_batches(config, lane, operator)]

    sizes = config.batch_size
    some = sizes if len(sizes) < 3 else (sizes[0], sizes[len(sizes) // 2], sizes[-1])
    found = {"batch": measure("batch", config.batch_size, draw, read)}
    found["adam"] = measure("adam", some, draw_adam, read_adam)
    return Result(config, {**found, "descent": plain, "adam descent": moved})


def batches(config: Config, lane):
    """``(key, number)`` of the batches drawn of one size."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), lane.seed), lane.batch_size)
    return key, config.draws * max(config.batch_size) // lane.batch_size


def top_of_batches(config: Config, lane, operator):
    """Reads the mean top eigenvalue of ``operator(params, batch)`` over draws of the batch, with its error."""
    key, draws = batches(config, lane)

    def read(params, batch):
        def draw(key):
            rows = jax.random.permutation(key, config.samples)[: lane.batch_size]
            matvec, dimension, dtype, _ = operator(params, jax.tree.map(lambda leaf: leaf[rows], batch))
            start = jax.random.normal(jax.random.fold_in(key, 1), (dimension,), dtype)
            return linalg.extreme_eigenvalues(matvec, start, 25)[0].value

        top = linalg.mean_and_error(jax.lax.map(draw, jax.random.split(key, draws), batch_size=4))
        return {"batch_top": top.value, "batch_top_error": top.error}

    return read


def predicted(config: Config, lane, params, batch):
    """The theory on the same batches, the first-order lifts, and the full batch's eigenvalue."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    key, draws = batches(config, lane)
    return {
        "theory": lifted(lane.top, lane.within, lane.outside, key, lane.batch_size, draws),
        "full": lane.top[0],
        **first_order(lane.top, lane.within, lane.outside, lane.batch_size, parameters),
    }


def first_order(top, within, outside, size: int, parameters: int) -> dict[str, jax.Array]:
    """The paper's lift with the noise ``along`` u_1 itself, and with all ``elements`` alike."""
    blocks = within @ jnp.swapaxes(within, -1, -2) + jax.vmap(jnp.diag)(outside)  # J_i J_i^T, [n, c, c]
    first, n = within[..., 0], within.shape[0]
    noise = {
        "along": jnp.mean(jnp.einsum("nc,ncd,nd->n", first, blocks, first)) - top[0] ** 2,
        "elements": (jnp.mean(jnp.sum(blocks**2, (1, 2))) - jnp.sum(top**2)) / parameters,
    }

    def lift(v):
        v = jnp.maximum(v, 0) * (1 / size - 1 / n)
        return jnp.where(v < top[0] ** 2, top[0] + v / top[0], 2 * jnp.sqrt(v))

    return {name: lift(v) for name, v in noise.items()}


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
    """Over seeds, each the mean over its batches."""
    cfg, values = result.config, {k: np.asarray(v)[0] for k, v in result.records["batch"].values.items()}
    sizes, top = np.asarray(cfg.batch_size), values["batch_top"]  # [sizes], [sizes, seeds]
    rivals = {
        "theorem 1, noise along u_1": "along", "theorem 1, all elements alike": "elements", "no noise": "full"
    }  # fmt: skip
    apart = {name: np.abs(top / values[key] - 1).max(0) for name, key in {"": "theory", **rivals}.items()}
    name = "top eigenvalue of batch Hessians against theory: largest relative error"
    found = [Claim.at_most(name, "theorem 1", apart.pop(""), 0.1, rivals=apart)]
    if len(sizes) < 4:
        return [*found, Claim.not_applicable("scaling of the largest stable rate", "figure 5", "needs four sizes")]
    rules, note = {"linear rule": 1.0, "square-root rule": 0.5}, "the abstract's rule: linear"
    slope, law = exponents(sizes, top), exponents(sizes, values["theory"]).mean(-1)
    name = "SGD: exponent of the largest stable rate in B, at the smallest B"
    others = {"linear rule": 1.0, "no noise": exponents(sizes, values["full"])[0]}
    others["theorem 1, all elements alike"] = exponents(sizes, values["elements"])[0]
    found.append(Claim.close(name, "figure 5", slope[0], law[0], 0.1, rivals=others, note=note))
    name = "SGD: exponent of the largest stable rate in B, at the largest B"
    found.append(Claim.at_most(name, "figure 5", slope[-1], 0.15, rivals=rules, note=note))
    moved = result.records["adam"]
    ends = np.asarray(moved.values["batch_top"])[0, [0, -1]]
    slope = exponents(np.asarray(moved.axes["batch_size"])[[0, -1]], ends)[0]
    name, rivals = "Adam: exponent of the largest stable rate in B", {"linear rule": 1.0, "no noise": 0.0}
    note = "the abstract's rule: .5; of base seeds 0, 100, 200 the second lies below the band (.28)"
    found.append(Claim.between(name, "figure 5", slope, 0.3, 0.7, rivals=rivals, note=note))
    if "test_loss" in result.records["descent"].values:
        found.append(learnt_claim(result.records["descent"], "figure 5"))
    ratio = top / values["full"]
    name, rivals = "lambda_1 of the largest batch over the full one", {f"that of B = {sizes[0]}": ratio[0]}
    return [*found, Claim.between(name, "figure 1", ratio[-1], 0.98, 1.15, rivals=rivals)]


def exponents(sizes, top) -> np.ndarray:
    """Of ``1/top`` in the batch size, between neighbours, ``[sizes - 1, seeds]``."""
    return -np.diff(np.log(top), axis=0) / np.diff(np.log(np.asarray(sizes)))[:, None]


def figure(result: Result) -> Figure:
    """Largest stable rate against batch size, of SGD and Adam: measured, theory, rules, and the paper's lifts."""
    cfg, values = result.config, {k: np.asarray(v)[0].mean(-1) for k, v in result.records["batch"].values.items()}
    sizes, moved = np.asarray(cfg.batch_size), result.records["adam"]
    picture, (left, right) = new_figure(1, 2)
    top, error = values["batch_top"], values["batch_top_error"]
    left.errorbar(sizes, 2 / top, yerr=2 * error / top**2, **measured_style(0, 2), label=r"$2/\lambda_1(H_B)$ measured")
    left.plot(sizes, 2 / values["theory"], **theory_style(), label="theory")
    left.plot(sizes, 2 / values["full"], **theory_style(1), label="full batch")
    for i, (key, label) in enumerate((("along", r"theorem 1, along $u_1$"), ("elements", "theorem 1, all elements"))):
        left.plot(sizes, 2 / values[key], **rival_style(i), label=label)
    own, scale = np.asarray(moved.axes["batch_size"]), (2 + 2 * B1) / (1 - B1)
    rate = scale / np.asarray(moved.values["batch_top"])[0].mean(-1)
    right.plot(own, rate, **measured_style(1, 2), label="Adam, measured")
    for axes, first, at, theirs in ((left, 2 / top[0], sizes, 1.0), (right, rate[0], own, 0.5)):
        for i, power in enumerate((1.0, 0.5)):
            label = {1.0: "linear rule", 0.5: "square-root rule"}[power]
            label += " (the abstract's)" if power == theirs else ""
            axes.plot(at, first * (at / at[0]) ** power, **rival_style(2 + i), label=label)
        axes.set(xlabel="batch size B", xscale="log", yscale="log")
        axes.legend(fontsize=7)
    left.set(ylabel="largest stable rate of SGD", ylim=(None, 4 / values["full"][0]))
    right.set(ylabel="largest stable rate of Adam", ylim=(None, 4 * rate.max()))
    return picture


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
