"""Steepest descent under a norm, layer by layer: what sign descent and Muon are (Bernstein & Newhouse 2024).

The step ``argmin <G, D> + (Lambda/2)|D|^2`` is ``-|G|_* T/Lambda`` with T the direction that attains the dual norm
``|G|_*``: ``U V^T`` for the spectral norm, ``sign G`` for the largest entry, ``G/|G|`` for Frobenius'. It lowers ``L =
E|Wx - y|^2/2`` by ``|G|_*^2/(2 Lambda)`` or more, if ``tr(D Sigma D^T) <= Lambda |D|^2``: Lambda is
``lambda_max(Sigma)`` (frobenius), ``tr Sigma`` (spectral), ``d_out E|x|_1^2`` (max). Which norm is fast depends on
Sigma. Steps T of one length with decoupled decay lam are Frank-Wolfe's on the ball ``|W| <= 1/lam``: they end at the
least loss in it, not at ridge regression. Muon's Newton-Schulz iteration is not ``U V^T``, and ends elsewhere.

Run time: about 25 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import config
from dynamics.config import Count, NonNegative, Positive, Range
from dynamics.evolve import Drawn, descent, every
from dynamics.evolve import study as in_memory
from dynamics.geometry import NORMS, dual, norm_dual
from dynamics.geometry.norms import Norm
from dynamics.observe import dual_norms, loss
from dynamics.runs.figures import measured_style, new_figure, rival_style
from dynamics.types import Batch, Claim, Objective, Observable, Record

SOURCE = "Bernstein & Newhouse 2024, 'Old optimizer, new norm: an anthology'"
SECONDS = 25

QUINTIC = (3.4445, -4.775, 2.0315)  # of Muon's iteration
SMALLER = {"spectral": "lambda_max(Sigma)", "max": "tr Sigma", "frobenius": "mean eigenvalue"}  # the rival of Lambda
RULES = (*NORMS, "newton-schulz")
L = Objective(lambda params, x: x @ params["w"], lambda f, y: 0.5 * jnp.mean(jnp.sum((f - y) ** 2, -1)))


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 10
    """draws of inputs and teacher"""
    inputs: Annotated[int, Count] = 30
    """d_in"""
    outputs: Annotated[int, Count] = 20
    """d_out"""
    samples: Annotated[int, Count] = 300
    """samples"""
    power: Annotated[tuple[float, ...], NonNegative] = (0.0, 1.5)
    """decay a of the inputs' covariance i^-a, ascending"""
    steps: Annotated[int, Count] = 60
    """steps of steepest descent at 1/Lambda"""
    decay: Annotated[float, Positive] = 1.0
    """lam of the ball |W| <= 1/lam; the teacher's weights are N(0, 1)"""
    decay_seeds: Annotated[int, Count] = 3
    """draws trained with decay, at the largest power"""
    decay_steps: Annotated[int, Count] = 4000
    """steps with decay"""
    size: Annotated[tuple[int, ...], Range(4)] = (32, 64)
    """sizes of the square Gaussian matrices for Newton-Schulz"""
    directions: Annotated[int, Count] = 300
    """steps that compete with the dual's"""

    @classmethod
    def large(cls) -> Config:
        """A layer of 48 by 64, larger matrices; five minutes of a core."""
        return cls(inputs=64, outputs=48, samples=600, decay_seeds=1, size=(32, 64, 128), directions=200)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.power) > 0)), "power", "ascending values")


class Result(NamedTuple):
    """``records``: 'duals' (``[1, norm, seed]``), 'newton_schulz' (``[1, size, seed]``), 'descent' (loss and
    ``dual_norms``, ``[T, norm, power, seed]``) and 'decay' (``[T, rule, seed]``)."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """Duals against competitors; Newton-Schulz; steepest descent; descent with decoupled decay."""
    with jax.enable_x64(True):
        key, drawn = jax.random.key(config.seed), Observable.of_view(lambda view: view.params)
        seeds = {"seed": range(config.seeds)}

        def directions(lane):
            return competition(jax.random.fold_in(key, lane.seed), lane.norm, config)

        def iterated(lane):
            return newton_schulz(jax.random.fold_in(key, lane.seed), lane.size)

        alone = dict(make=None, read=drawn, steps=0, data=())
        records = {
            "duals": study({"norm": NORMS, **seeds}, directions, **alone, label="duals"),
            "newton_schulz": study({"size": config.size, **seeds}, iterated, **alone, label="newton-schulz"),
            "descent": steepest(config, study),
            "decay": decayed(config, study),
        }
        return Result(config, records)


def norm_of(w, norm: str):
    """``|W|``, on its own: by singular values, entries, squares."""
    if norm == "spectral":
        return jnp.max(jnp.linalg.svd(w, compute_uv=False), axis=-1)
    return jnp.max(jnp.abs(w), (-2, -1)) if norm == "max" else jnp.sqrt(jnp.sum(w**2, (-2, -1)))


@partial(jax.jit, static_argnums=(1, 2))
def competition(key, norm: Norm, config: Config) -> dict:
    """``<G, D>/(|D| |G|_*)`` of a Gaussian G, of the norm's own direction and the best of others."""
    kg, kd = jax.random.split(key)
    g = jax.random.normal(kg, (config.inputs, config.outputs))
    own = dual(g, norm)
    noise = jax.random.normal(kd, (config.directions, *g.shape))

    def share(d):
        return jnp.sum(g * d, (-2, -1)) / norm_of(d, norm) / own.norm

    near = own.direction + 0.01 * norm_of(own.direction, norm) * noise / norm_of(noise, norm)[:, None, None]
    found = {"own": share(own.direction), "random": jnp.max(share(noise)), "near": jnp.max(share(near))}
    return (
        found
        | {f"of {other}": share(dual(g, other).direction) for other in NORMS if other != norm}
        | {f"of {norm}": share(own.direction)}
    )


@partial(jax.jit, static_argnums=1)
def newton_schulz(key, size: int) -> dict:
    """Singular values of optax's Muon on a Gaussian matrix, of ``norm_dual``, and what the scalar iteration says."""
    g = jax.random.normal(key, (size, size))
    params, matrix = {"w": g}, {"w": optax.contrib.MuonDimensionNumbers()}
    muon = optax.contrib.scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=matrix)
    by_optax: Any = muon.update(params, muon.init(params), params)[0]
    by_dual: Any = norm_dual("spectral", exact=False, unit=True).update(params, optax.EmptyState())[0]
    s = jnp.linalg.svd(g, compute_uv=False)
    s = s / jnp.sqrt(jnp.sum(s**2))
    for _ in range(5):
        s = sum(c * s ** (2 * i + 1) for i, c in enumerate(QUINTIC))
    values = {"optax": by_optax["w"], "norm_dual": by_dual["w"], "exact": dual(g, "spectral").direction}
    values = {name: jnp.sort(jnp.linalg.svd(w, compute_uv=False)) for name, w in values.items()}
    values |= {"scalar": jnp.sort(jnp.abs(s))}
    off = {f"{name}_off": jnp.max(jnp.abs(v - values["scalar"])) for name, v in values.items() if name != "scalar"}
    smallest = {f"{name}_smallest": v[0] for name, v in values.items()}
    return off | smallest | {"largest": values["optax"][-1]}


def task(config: Config, power: float, seed: int) -> Batch:
    kx, kw = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), seed))
    spread = jnp.arange(1.0, config.inputs + 1) ** (-power / 2)
    x = jax.random.normal(kx, (config.samples, config.inputs)) * spread
    return Batch(x, x @ jax.random.normal(kw, (config.inputs, config.outputs)))


def curvatures(x, outputs: int) -> dict:
    """``(Lambda, what is taken for it and too small)`` of each norm."""
    sigma = x.T @ x / len(x)
    trace, top = jnp.trace(sigma), jnp.linalg.norm(sigma, 2)
    return {
        "spectral": (trace, top),
        "max": (outputs * jnp.mean(jnp.sum(jnp.abs(x), 1) ** 2), trace),
        "frobenius": (top, trace / len(sigma)),
    }


def steepest(config: Config, study) -> Record:
    """Steepest descent at ``1/Lambda``."""

    def draw(lane):
        batch = task(config, lane.power, lane.seed)
        start = {"w": jnp.zeros((config.inputs, config.outputs))}
        return Drawn(start, batch, {"curvature": curvatures(batch.x, config.outputs)})

    def make(lane):
        rate = optax.scale_by_learning_rate(1 / lane.curvature[lane.norm][0])
        return descent(L, optax.chain(norm_dual(lane.norm), rate))

    def read(lane):
        held = Observable.of_view(lambda view: dict(zip(("Lambda", "smaller"), lane.curvature[lane.norm])))
        return [loss(), dual_norms(), held]

    return study(
        {"norm": NORMS, "power": config.power, "seed": range(config.seeds)},
        draw, make, read, steps=config.steps, record_at=every(1, config.steps), label="descent",
    )  # fmt: skip


def decayed(config: Config, study) -> Record:
    """Steps of one length with decoupled decay, at rates ``4/(lam (t + 4))``: distances to the ball's least."""
    lam = config.decay

    def draw(lane):
        batch = task(config, config.power[-1], lane.seed)
        x, y = batch
        sigma, c = x.T @ x / len(x), x.T @ y / len(x)
        ends = {f"ball of {norm}": optimum(sigma, c, norm, 1 / lam) for norm in NORMS}
        ends["ridge"] = jnp.linalg.solve(sigma + lam * jnp.eye(len(sigma)), c)
        return Drawn({"w": jnp.zeros_like(c)}, batch, {"ends": ends})

    def make(lane):
        norm = "spectral" if lane.rule == "newton-schulz" else lane.rule
        step = norm_dual(norm, exact=lane.rule != "newton-schulz", unit=True)
        rate = optax.scale_by_learning_rate(lambda count: 4 / (lam * (count + 4)))
        return descent(L, optax.chain(step, optax.add_decayed_weights(lam), rate))

    def read(lane):
        def distances(view):
            w = view.params["w"]
            size = {name: jnp.linalg.norm(end) for name, end in lane.ends.items()}
            found = {name: jnp.linalg.norm(w - end) / size[name] for name, end in lane.ends.items()}
            first = jnp.mean(jnp.sum(view.batch.y**2, -1)) / 2
            excess = {
                f"excess, {name}": (L(view.params, view.batch) - L({"w": end}, view.batch)) / first
                for name, end in lane.ends.items()
            }
            return found | excess | {f"size, {norm}": lam * norm_of(w, norm) for norm in NORMS}

        return Observable.of_view(distances)

    at = np.unique(np.geomspace(1, config.decay_steps, 40).astype(int))
    return study(
        {"rule": RULES, "seed": range(config.decay_seeds)}, draw, make, read,
        steps=config.decay_steps, record_at=[0, *at.tolist()], label="decay",
    )  # fmt: skip


@partial(jax.jit, static_argnames=("norm", "iterations"))
def optimum(sigma, c, norm: str, radius, iterations: int = 2000):
    """``min tr(W^T Sigma W)/2 - tr(C^T W)`` subject to ``|W| <= radius``, by projected gradients with momentum."""
    values = jnp.linalg.eigvalsh(sigma)
    root = jnp.sqrt(jnp.maximum(values[0], 0.0) / values[-1])
    momentum = (1 - root) / (1 + root)

    def project(w):
        if norm == "max":
            return jnp.clip(w, -radius, radius)
        if norm == "frobenius":
            return w * jnp.minimum(1.0, radius / jnp.linalg.norm(w))
        u, s, vt = jnp.linalg.svd(w, full_matrices=False)
        return (u * jnp.minimum(s, radius)) @ vt

    def step(_, carry):
        w, ahead = carry
        new = project(ahead - (sigma @ ahead - c) / values[-1])
        return new, new + momentum * (new - w)

    start = jnp.ones_like(c) * 1e-3 * radius
    return jax.lax.fori_loop(0, iterations, step, (start, start))[0]


def claims(result: Result) -> list[Claim]:
    """Draws are independent."""
    return [*dual_claims(result), *descent_claims(result), *decay_claims(result)]


def dual_claims(result: Result) -> list[Claim]:
    """The dual's value and direction, and Newton-Schulz beside them."""
    found, out = result.records["duals"].values, []
    for place, norm in enumerate(NORMS):
        share = {name: values[0, place] for name, values in found.items()}
        rivals = {f"direction {name}": share[name] for name in share if name not in ("own", f"of {norm}")}
        title, source = f"{norm}: <G, T>/(|T| |G|_*), of random G", "identity: propositions 2, 4, 5"
        out.append(Claim.close(title, source, share["own"], 1.0, 1e-10, rivals=rivals))
    found = {name: values[0] for name, values in result.records["newton_schulz"].values.items()}  # [size, seed]
    for place, size in enumerate(result.config.size):
        at, name = {key: values[place] for key, values in found.items()}, f"Newton-Schulz, {size} x {size}"
        out += [
            Claim.at_most(
                f"{name}: singular values of optax's Muon off the scalar iteration", "Jordan et al. 2024",
                at["optax_off"], 1e-6, rivals={"U V^T": at["exact_off"]},
            ),
            Claim.at_most(
                f"{name}: smallest singular value of optax's Muon", "measured", at["optax_smallest"], 0.7,
                rivals={"U V^T": at["exact_smallest"]}, note=f"largest {np.max(at['largest']):.3f}",
            ),
        ]  # fmt: skip
    return out


def gains(result: Result, norm: str, curvature: str = "Lambda") -> np.ndarray:
    """Measured decreases over ``|G|_*^2/(2 Lambda)``, ``[T, power, seed]``, where losses are above rounding."""
    place, values = NORMS.index(norm), result.records["descent"].values
    loss, size, kappa = (values[key][:, place] for key in ("loss", f"dual_norm/{norm}/w", curvature))
    small = loss[:-1] < 1e-9 * loss[0]
    return np.where(small, np.inf, (loss[:-1] - loss[1:]) / np.where(small, 1.0, size[:-1] ** 2 / (2 * kappa[:-1])))


def descent_claims(result: Result) -> list[Claim]:
    """What a step gains, and which norm is fast.

    The curvatures that rivals take for Lambda were chosen after a result, as ones whose bound is broken."""
    cfg, values, out = result.config, result.records["descent"].values, []
    for place, norm in enumerate(NORMS):
        least, rival = (gains(result, norm, curvature).min((0, 1)) for curvature in ("Lambda", "smaller"))
        loss, size, kappa, curvature = (
            values[key][:-1, place] for key in ("loss", f"dual_norm/{norm}/w", f"curvature/{norm}/w", "Lambda")
        )
        step, measured = size / curvature, loss - values["loss"][1:, place]
        off, flat = (
            np.max(np.abs(measured - decrease) / loss[:1], (0, 1))
            for decrease in (step * size - step**2 * kappa / 2, step * size / 2)
        )
        title = f"{norm}: decrease over |G|_*^2/(2 Lambda), least of all steps and inputs"
        rivals = {f"{SMALLER[norm]} for Lambda": rival}
        out.append(Claim.at_least(title, "proposition 1", least, 1.0, rivals=rivals))
        title = f"{norm}: decrease against dual norm and curvature of dual_norms, over the first loss"
        rivals = {"|G|_*^2/(2 Lambda)": flat}
        out.append(Claim.at_most(title, "identity: L is quadratic", off, 1e-9, rivals=rivals))
    title, source = (
        "inputs of power-law covariance: log10 loss, spectral over frobenius, after all steps",
        "section 2.2",
    )
    if len(cfg.power) < 2 or cfg.power[0] > 0 or cfg.power[-1] < 1 or cfg.steps < 30 or cfg.seeds < 3:
        note = "needs isotropic inputs and such of power >= 1, 30 steps, 3 draws"
        return [*out, Claim.not_applicable(title, source, note)]
    end = np.log10(np.maximum(values["loss"][-1], 1e-300))  # [norm, power, seed]
    gap = end[NORMS.index("spectral")] - end[NORMS.index("frobenius")]
    return [*out, Claim.at_most(title, source, gap[-1], -0.5, rivals={"isotropic inputs": gap[0]})]


def decay_claims(result: Result) -> list[Claim]:
    """Relative distances and losses at the end, of every draw.

    The logarithm of the excess, its bound and that of Newton-Schulz's distance were chosen after a result: where
    entries' signs alternate the distance falls as 1/t, and the loss has no such error in first order."""
    cfg, values, out = result.config, result.records["decay"].values, []
    ends = [f"ball of {norm}" for norm in NORMS] + ["ridge"]
    source = "decoupled decay as a ball"
    for place, norm in enumerate(NORMS):
        titles = (
            f"{norm} steps with decay: log10 distance to the least loss in their ball",
            f"{norm} steps with decay: log10 of the excess over the least loss in their ball, over the first",
        )
        if cfg.decay_steps < 2000:
            out += [Claim.not_applicable(title, source, "needs 2000 steps") for title in titles]
            continue
        away, excess = (
            {name: np.log10(np.maximum(np.abs(values[f"{kind}{name}"][-1, place]), 1e-17)) for name in ends}
            for kind in ("", "excess, ")
        )
        own = f"ball of {norm}"
        # where not all entries are at the bound, the signs of the others alternate: an error of 1/t
        high = -2.0 if norm == "max" else -6.0
        for title, held, bound in ((titles[0], away, high), (titles[1], excess, -5.0)):
            rivals = {name: held[name] for name in ends if name != own}
            out.append(Claim.at_most(title, source, held[own], bound, rivals=rivals))
    spectral, schulz = (values["ball of spectral"][-1, RULES.index(rule)] for rule in ("spectral", "newton-schulz"))
    title = "Newton-Schulz steps with decay: distance to the least loss in the spectral ball, relative"
    if cfg.decay_steps < 2000:
        return [*out, Claim.not_applicable(title, "measured", "needs 2000 steps")]
    size = values["size, spectral"][-1, RULES.index("newton-schulz")]
    note = f"lam |W| = {size.mean():.2f}"
    return [*out, Claim.at_least(title, "measured", schulz, 0.05, rivals={"U V^T": spectral}, note=note)]


def figure(result: Result):
    """Loss by norm for both inputs; decrease over what is guaranteed; distance to the ball's optimum."""
    cfg, values = result.config, result.records["descent"].values
    fig, panels = new_figure(1, 3, width=3.7, height=3.5)
    steps, power = np.arange(cfg.steps + 1), len(cfg.power) - 1
    for i, norm in enumerate(NORMS):
        style = measured_style(i, len(NORMS)) | {"ms": 4, "markevery": max(1, cfg.steps // 12)}
        loss = values["loss"][:, i].mean(-1)
        panels[0].plot(steps, loss[:, power] / loss[0, power], label=norm, **style | {"linestyle": "-", "lw": 1})
        if power:
            panels[0].plot(steps, loss[:, 0] / loss[0, 0], color=style["color"], ls=":", lw=1)
        panels[1].plot(steps[1:], gains(result, norm)[:, power].min(-1), **style | {"linestyle": "-", "lw": 1})
        ratio = gains(result, norm, "smaller")[:, power].min(-1)
        panels[1].plot(steps[1:], ratio, **rival_style(i), label=f"{norm}: {SMALLER[norm]}")
    panels[0].set(xlabel="step", ylabel="loss over the first (dots: isotropic inputs)", yscale="log", ylim=(1e-4, 2))
    panels[1].axhline(1.0, color="black", lw=0.8)
    panels[1].set(xlabel="step", ylabel="decrease over its bound, least draw", yscale="log", ylim=(3e-4, 4))
    record = result.records["decay"]
    for i, rule in enumerate(RULES):
        name = f"ball of {'spectral' if rule == 'newton-schulz' else rule}"
        style = measured_style(i, len(RULES)) | {"ms": 4, "markevery": 4}
        away = np.maximum(record.values[name][1:, i].mean(-1), 1e-15)
        panels[2].plot(record.step[1:], away, label=rule, **style | {"linestyle": "-", "lw": 1})
    ridge = record.values["ridge"][1:, 0].mean(-1)
    panels[2].plot(record.step[1:], ridge, label="spectral, to ridge", **rival_style(0))
    panels[2].set(xlabel="step", ylabel="distance to the least loss in the ball", xscale="log", yscale="log")
    for axes, place in zip(panels, ("upper right", "lower left", "lower left")):
        axes.legend(fontsize=7.5, loc=place)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
