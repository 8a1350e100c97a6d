"""Deep linear networks learn their modes one by one (Saxe, McClelland & Ganguli 2013; Domine et al. 2024).

On whitened inputs with loss ``1/2 |S - W_K ... W_1|_F^2`` a mode of strength s obeys ``da/dt = K a^(2-2/K) (s - a)``:
two layers give ``a = s e^(2st) / (e^(2st) - 1 + s/a0)``, and with learning rate c/K the number of steps saturates as
K grows. Away from that aligned start, random orthogonal weights keep deep nets fast where Gaussian ones stall. The
imbalance ``W2^T W2 - W1 W1^T = lam I`` is conserved and sets the regime: rich at lam = 0, lazy at large ``|lam|``, with
a closed form throughout.

Run time: about 60 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config
from dynamics.config import Count, Positive, Range
from dynamics.empirical import flat_kernel
from dynamics.evolve import Drawn, every, gradient_descent, gradient_flow, log_steps
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, rival_style, ticks_at
from dynamics.statistics import kernel_alignment, kernel_distance
from dynamics.theory import deep_linear as theory
from dynamics.types import Batch, Claim, Objective, Observable, Record

SOURCE = (
    "Saxe, McClelland & Ganguli 2013, 'Exact solutions to the nonlinear dynamics of learning in deep linear networks'"
)
SECONDS = 60
RATES = tuple(2.0**p for p in range(-4, 3))  # learning rates tried for each deep net, times 1/K


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 3
    """number of independent initial weights"""
    size: Annotated[int, Range(4, 256)] = 16
    """units in every layer"""
    strength: Annotated[tuple[float, ...], Positive] = (4.0, 3.0, 2.0, 1.0)
    """target singular values s of the aligned two-layer net"""
    start: Annotated[float, Positive] = 0.01
    """initial mode strength a0 of the aligned two-layer net"""
    learning_rate: Annotated[tuple[float, ...], Positive] = (1e-2, 1e-3)
    """learning rates of the aligned net"""
    depth: Annotated[tuple[int, ...], Range(2, 1000)] = (2, 4, 8, 16, 32, 64)
    """depths K of the single mode (s = 1, a0 = 0.1, learning rate 0.02/K)"""
    deep: Annotated[tuple[int, ...], Range(2, 1000)] = (4, 16, 64)
    """depths K at which orthogonal and Gaussian starts are compared"""
    patience: Annotated[int, Count] = 1500
    """steps after which a deep net counts as stalled"""
    imbalance: tuple[float, ...] = (-8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0)
    """imbalances lam of the square two-layer net (4 units a layer), ascending"""
    imbalance_seeds: Annotated[int, Count] = 8
    """draws of start and target at each imbalance"""

    @classmethod
    def large(cls) -> Config:
        """Deeper chains, more seeds; sizes of ours, where Saxe et al. train up to 100 layers of 1000 units on MNIST.
        About ten minutes on two cores."""
        return cls(seeds=10, depth=(2, 4, 8, 16, 32, 64, 128, 256), deep=(4, 16, 64, 100), patience=5000)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.strength) <= self.size, "strength", f"at most size = {self.size} values")
        self.require(self.start < min(self.strength), "start", "below every strength")
        self.require(bool(np.all(np.diff(self.imbalance) > 0)), "imbalance", "ascending values")


class Result(NamedTuple):
    """``records``: modes, modes theory ``[T, rates, modes]``; depth ``[1, depths]``; starts ``[1, starts, depths,
    seeds]``; imbalance, imbalance theory ``[T, lams, seeds]``."""

    config: Config
    records: dict[str, Record]


def half_sum(f, y):
    """``1/2 |f - y|_F^2``: with the identity as inputs, ``1/2 |S - W|_F^2``."""
    return 0.5 * jnp.sum((f - y) ** 2)


def linear(weights, x):
    """``W_K ... W_1 x`` for ``weights [K, n, n]``, inputs as rows."""
    return jax.lax.scan(lambda h, w: (h @ w.T, None), x, weights)[0]


def run(config: Config, study=in_memory) -> Result:
    """Aligned modes, depth, starts and imbalance; each a handful of compiled programs."""
    records = {"depth": run_depth(config, study), "starts": run_starts(config, study)}
    records["modes"], records["modes theory"] = run_modes(config, study)
    with jax.enable_x64(True):  # in single precision rounding hides the fourth-order error of the flow's steps
        records["imbalance"], records["imbalance theory"] = run_imbalance(config, study)
    return Result(config, records)


def run_modes(config: Config, study) -> tuple[Record, Record]:
    """Gradient descent from balanced weights aligned with the target, against the closed form."""
    n, s, key = config.size, np.asarray(config.strength), jax.random.key(config.seed)
    u, v, r = jnp.linalg.qr(jax.random.normal(key, (3, n, n)))[0]
    pad = jnp.pad(jnp.asarray(s), (0, n - len(s)))
    root = jnp.where(pad > 0, config.start**0.5, 0.0)
    target, L = (u * pad) @ v.T, Objective(linear, half_sum)

    def strength(weights, batch):
        return {"strength": jnp.diag(u.T @ weights[1] @ weights[0] @ v)[: len(s)]}

    slowest = np.log(max(s) / config.start) / min(s)  # twice the time of the slowest mode
    steps = int(np.ceil(slowest / min(config.learning_rate)))
    record = study(
        {"learning_rate": config.learning_rate},
        draw=lambda lane: jnp.stack([(r * root) @ v.T, (u * root) @ r.T]),
        make=lambda lane: gradient_descent(L, lane.learning_rate),
        read=[strength],
        steps=steps,
        record_at=log_steps(steps, 150),
        key=key,
        data=Batch(jnp.eye(n), target.T),
        label="modes",
    )
    record = record._replace(time=record.step[:, None] * np.asarray(config.learning_rate))  # of one rate as well
    curve = theory.mode_strength(record.time[..., None], s, config.start)
    return record, record._replace(values={"strength": np.asarray(curve)})


def run_depth(config: Config, study) -> Record:
    """Steps a chain of K scalars needs to bring ``(1 - a)^2`` to 0.05, and the quadrature's answer."""
    rate, start, steps = 0.02, 0.1, 2000

    def objective(depth):
        used = jnp.arange(max(config.depth)) < depth
        return Objective(lambda w, x: x * jnp.prod(jnp.where(used, w, 1.0)), half_sum)

    record = study(
        {"depth": config.depth},
        draw=lambda lane: jnp.full(max(config.depth), start ** (1.0 / lane.depth)),
        make=lambda lane: gradient_descent(objective(lane.depth), rate / lane.depth),
        read=Observable.of_view(lambda view: {"steps": view.state.step}),
        steps=steps,
        record_at=every(1, steps),  # NaN once stopped
        key=jax.random.key(config.seed),
        data=Batch(jnp.ones((1, 1)), jnp.ones((1, 1))),
        stop=lambda lane: lambda state, data: objective(lane.depth)(state.params, data) <= 0.025,
        label="depth",
    )
    exact = np.asarray(theory.learning_time(start, 1.0 - 0.05**0.5, 1.0, np.append(config.depth, np.inf))) / rate
    values = {"steps": np.nanmax(record.values["steps"], axis=0)[None], "quadrature": exact[None, :-1]}
    return Record(record.step[-1:], record.step[-1:], values | {"limit": exact[-1:]}, record.axes)


def run_starts(config: Config, study) -> Record:
    """Steps to 10 % of the loss from orthogonal and from Gaussian weights, at the best of seven learning rates."""
    n, key, L = config.size, jax.random.key(config.seed), Objective(linear, half_sum)
    left, right = jnp.linalg.qr(jax.random.normal(jax.random.fold_in(key, 1), (2, n, n)))[0]
    data = Batch(jnp.eye(n), ((left * jnp.linspace(2.0, 0.5, n)) @ right.T).T)

    def draw(lane) -> Drawn:
        of_depth = jax.random.fold_in(key, lane.deep)
        weights = jax.random.normal(of_depth, (config.seeds, lane.deep, n, n))[lane.seed]
        weights = weights / n**0.5 if lane.gaussian else jnp.linalg.qr(weights)[0]
        return Drawn(weights, values={"goal": 0.1 * L(weights, data)})

    record = study(
        {"gaussian": (0, 1), "deep": config.deep, "seed": range(config.seeds), "rate": RATES},
        draw=draw,
        make=lambda lane: gradient_descent(L, lane.rate / lane.deep),
        read=lambda lane: Observable.of_view(
            lambda view: {"steps": jnp.where(view.state.loss <= lane.goal, view.state.step - 1.0, jnp.nan)}
        ),
        steps=config.patience,
        record_at=every(1, config.patience),
        key=key,
        data=data,
        stop=lambda lane: lambda at, data: (at.loss <= lane.goal) | ((at.step > 0) & ~jnp.isfinite(at.loss)),
        label="starts",
    )
    best = np.nan_to_num(record.values["steps"], nan=np.inf).min(axis=(0, -1))
    axes = {name: record.axes[name] for name in ("gaussian", "deep", "seed")}
    return Record(record.step[-1:], record.step[-1:], {"steps": best[None]}, axes)


def run_imbalance(config: Config, study) -> tuple[Record, Record]:
    """Gradient flow of lambda-balanced square nets beside the closed form."""
    size, dt, steps = 4, 0.01, 1000
    record_at, key = log_steps(steps, 40), jax.random.key(config.seed)
    L = Objective(lambda w, x: x @ w[0].T @ w[1].T, half_sum)

    def draw(lane) -> Drawn:
        own = jax.random.fold_in(jax.random.fold_in(key, 2), lane.seed)
        target = jax.random.normal(jax.random.fold_in(own, 1), (size, size)) / size**0.5
        start = theory.lambda_balanced_init(own, (size, size, size), lane.imbalance, 0.2)
        exact = theory.lambda_balanced(record_at * dt, *start, target)
        balanced = theory.lambda_balanced_init(own, (size, size, size), 0.0, 0.2)  # the same product
        balanced = theory.lambda_balanced(record_at * dt, *balanced, target).function
        return Drawn(start, Batch(jnp.eye(size), target.T), {"start": start, "exact": exact, "balanced": balanced})

    def read(lane) -> Observable:
        def values(view):
            net, start = (theory.LinearNet(w2 @ w1, w1.T @ w1, w2 @ w2.T) for w1, w2 in (view.params, lane.start))
            exact = jax.tree.map(lambda leaf: leaf[view.reading], lane.exact)
            drift = theory.imbalance(view.params)[0] - theory.imbalance(lane.start)[0]
            found = {"drift": jnp.linalg.norm(drift)}
            for name, curve in (("error", exact.function), ("balanced", lane.balanced[view.reading])):
                found[name] = jnp.max(jnp.abs(net.function - curve))
            found |= kernel_movement(net, start)
            return found | {f"theory {name}": value for name, value in kernel_movement(exact, start).items()}

        return Observable.of_view(values)

    record = study(
        {"imbalance": config.imbalance, "seed": range(config.imbalance_seeds)},
        draw,
        make=lambda lane: gradient_flow(L, dt),
        read=read,
        steps=steps,
        record_at=record_at,
        key=key,
        label="imbalance",
    )
    exact = {name: record.values.pop(f"theory {name}") for name in ("kernel_alignment", "kernel_distance")}
    return record, record._replace(values=exact)


def kernel_movement(net: theory.LinearNet, start: theory.LinearNet) -> dict:
    """Alignment and distance of the kernel ``[n c, n c]`` on the identity, with that at the start."""
    x = jnp.eye(net.inputs.shape[-1])
    kernels = [flat_kernel(theory.linear_net_ntk(at, x, x)) for at in (net, start)]
    return {"kernel_alignment": kernel_alignment(*kernels), "kernel_distance": kernel_distance(*kernels)}


def claims(result: Result) -> list[Claim]:
    return [*mode_claims(result), *depth_claims(result), *start_claims(result), *imbalance_claims(result)]


def mode_claims(result: Result) -> list[Claim]:
    """Nothing here is random: each number is one run's."""
    cfg, record = result.config, result.records["modes"]
    measured, s = record.values["strength"], np.asarray(cfg.strength)
    curves = {"closed form": result.records["modes theory"].values["strength"], **other_modes(cfg, record.time)}
    gaps = {name: (np.abs(measured - curve) / s).max(axis=(0, 2)) for name, curve in curves.items()}  # [rates]
    own, out = gaps.pop("closed form"), []
    for i, eta in enumerate(cfg.learning_rate):
        name = f"aligned modes, eta = {eta:g}: largest |a - theory|/s"
        rivals = {key: gap[i] for key, gap in gaps.items()}
        out.append(Claim.at_most(name, "eq. 9, figure 3", own[i], max(eta * max(cfg.strength), 1e-4), rivals=rivals))
    name = "aligned modes: largest |a - theory|/s ~ eta^p: p"
    if len(cfg.learning_rate) < 2:
        return [*out, Claim.not_applicable(name, "eq. 9, figure 3", "needs two learning rates")]
    rates = np.log(cfg.learning_rate)
    power, *others = (np.polyfit(rates, np.log(gap), 1)[0] for gap in (own, *gaps.values()))
    return [*out, Claim.close(name, "eq. 9, figure 3", power, 1.0, 0.1, rivals=dict(zip(gaps, others)))]


def other_modes(config: Config, time) -> dict[str, np.ndarray]:
    """Strengths ``[T, rates, modes]`` of other theories: one layer, three layers, and half the time scale."""
    s, time = np.asarray(config.strength), np.asarray(time)[..., None]
    one = s - (s - config.start) * np.exp(-time)
    three = np.asarray(theory.deep_mode_strength(3 * time, s, config.start, 3))
    half = np.asarray(theory.mode_strength(time / 2, s, config.start))
    return {"one layer": one, "three layers": three, "half the rate": half}


def depth_claims(result: Result) -> list[Claim]:
    cfg, values = result.config, {k: v[0] for k, v in result.records["depth"].values.items()}
    steps, exact, depth = values["steps"], values["quadrature"], np.asarray(cfg.depth)
    two = np.asarray(theory.learning_time(0.1, 1.0 - 0.05**0.5, 1.0, 2)) / 0.02
    off = {"": exact, "two layers": two, "rate not over K": exact / depth}
    off = {name: np.abs(steps / curve - 1).max() for name, curve in off.items()}
    name = "depth: steps against quadrature, largest relative error"
    out = [Claim.at_most(name, "eq. 13", off.pop(""), 0.01, rivals=off)]
    name = "depth: steps at the deepest, over the infinite-depth limit"
    if max(cfg.depth) < 32 or min(cfg.depth) > 4:
        return [*out, Claim.not_applicable(name, "eq. 13", "needs depths up to 4 and from 32")]
    shallow, deep = (steps[at(depth)] / float(values["limit"]) for at in (np.argmin, np.argmax))
    rivals = {f"K = {min(cfg.depth)}": shallow, "steps grow as K": shallow * max(cfg.depth) / min(cfg.depth)}
    return [*out, Claim.between(name, "eq. 13", deep, 0.9, 1.01, rivals=rivals)]


def start_claims(result: Result) -> list[Claim]:
    """Over seeds, the worst depth inside each; a net that stalls counts as ``patience``.

    Steps are compared by the logarithm of their ratio; first written as the ratio, of 106 +- 10 in the quick preset,
    which its bound of 10 holds as well.
    """
    cfg = result.config
    steps = np.minimum(result.records["starts"].values["steps"][0], cfg.patience)  # [starts, depths, seeds]
    orthogonal, gaussian = steps
    deep = np.asarray(cfg.deep) >= 16
    names = (
        "orthogonal start: steps to 10 % loss, most over depths",
        "Gaussian start, K >= 16: log of its steps over the orthogonal start's, fewest over depths",
    )
    if not deep.any() or deep.all():
        return [Claim.not_applicable(name, "figure 6", "needs depths below and from 16") for name in names]
    ratio = np.log(gaussian / orthogonal)
    shallow = {f"K = {cfg.deep[0]}": ratio[0]}
    return [
        Claim.at_most(names[0], "figure 6", orthogonal.max(0), 30, rivals={"Gaussian start": gaussian.max(0)}),
        Claim.at_least(names[1], "figure 6", ratio[deep].min(0), np.log(10), rivals=shallow),
    ]


def imbalance_claims(result: Result) -> list[Claim]:
    """Over draws, the worst imbalance inside each.

    Alignments are compared by log(1 - KA), which orders them as KA does. First written was KA itself, whose last rise
    is .0021 +- .0004 in the quick preset, and uneven over draws: the nearer to 1, the less there is left to rise.
    """
    cfg, values = result.config, result.records["imbalance"].values
    error, balanced = (values[name].max((0, 1)) for name in ("error", "balanced"))  # [seeds]
    drift, source = values["drift"].max((0, 1)), "Domine et al. 2024, theorem 5.1"
    name = "closed form against gradient flow, largest error"
    out = [
        Claim.at_most(name, source, error, 1e-6, rivals={"balanced closed form": balanced}),
        Claim.at_most("drift of W2^T W2 - W1 W1^T, largest", "identity: conserved by gradient flow", drift, 1e-6),
    ]
    alignment = np.asarray(values["kernel_alignment"])[-1]  # [lams, seeds]
    for side, sign in (("lam <= 0", -1), ("lam >= 0", 1)):
        lams = sign * np.asarray(cfg.imbalance)
        order = [i for i in np.argsort(lams) if lams[i] >= 0]
        name = f"kernel alignment KA rises with |lam|, {side}: smallest fall of log(1 - KA) between neighbours"
        source = "Domine et al. 2024, figure 4"
        if len(order) > 2 and cfg.imbalance_seeds > 2:
            rises = -np.diff(np.log(np.maximum(1 - alignment[order], 1e-15)), axis=0)
            smallest = rises[np.argmin(rises.mean(-1) / np.maximum(rises.std(-1), 1e-9))]
            note = "KA " + ", ".join(f"{ka:.3f}" for ka in alignment[order].mean(-1))
            rivals = {"the imbalance has no effect": 0.0}
            out.append(Claim.at_least(name, source, smallest, 0.0, rivals=rivals, note=note))
        else:
            out.append(Claim.not_applicable(name, source, "needs three imbalances on this side and three seeds"))
    return out


def figure(result: Result):
    """Modes over their closed form, steps against depth, both starts, and kernel movement against the imbalance."""
    cfg, records = result.config, result.records
    fig, ((modes, depth), (starts, regime)) = new_figure(2, 2, width=5.5, height=3.5)
    measured, exact = records["modes"], records["modes theory"]
    for i, s in enumerate(cfg.strength):
        style = measured_style(i, len(cfg.strength))
        modes.plot(measured.time[::3, 0], measured.values["strength"][::3, 0, i], ms=3, label=f"s = {s:g}", **style)
        modes.plot(exact.time[:, 0], exact.values["strength"][:, 0, i], "-", lw=1, color=style["color"])
    for i, (name, curve) in enumerate(other_modes(cfg, exact.time[:, :1]).items()):
        modes.plot(exact.time[:, 0], curve[:, 0, 0], label=f"{name}, s = {cfg.strength[0]:g}", **rival_style(i))
    modes.set(xlabel="time (learning rate x step)", ylabel="mode strength a", xlim=(0, measured.time[-1, -1]))
    modes.set_title(f"two layers, eta = {cfg.learning_rate[0]:g}; lines: closed form", fontsize=9)
    modes.set_ylim(top=6.2 * max(cfg.strength) / 4)
    modes.legend(fontsize=8, ncol=2, loc="upper right")
    values = {name: value[0] for name, value in records["depth"].values.items()}
    depth.plot(cfg.depth, values["steps"], "o", color="black", label="gradient descent")
    depth.plot(cfg.depth, values["quadrature"], "-", color="black", lw=1, label="quadrature")
    depth.axhline(values["limit"], ls="--", color="black", lw=1, label="infinite depth")
    depth.plot(cfg.depth, values["quadrature"] / np.asarray(cfg.depth), label="rate not over K", **rival_style())
    depth.set(xscale="log", xlabel="depth K", ylabel="steps at learning rate 0.02/K")
    ticks_at(depth.xaxis, cfg.depth)
    depth.legend(fontsize=8)
    steps = np.minimum(np.median(records["starts"].values["steps"][0], axis=-1), cfg.patience)
    for marker, style, name, row in zip("os", ("-", "--"), ("orthogonal", "Gaussian"), steps):
        starts.plot(cfg.deep, row, marker + style, color="black", mfc="white", label=name)
    starts.axhline(cfg.patience, ls=":", color="grey")
    starts.set(xscale="log", yscale="log", xlabel="depth K", ylabel="steps to 10 % of the loss (best of 7 rates)")
    ticks_at(starts.xaxis, cfg.deep)
    starts.legend(fontsize=8)
    for name, marker in (("kernel_alignment", "o"), ("kernel_distance", "s")):
        shade = "black" if marker == "o" else "0.5"
        regime.plot(
            cfg.imbalance,
            records["imbalance"].values[name][-1].mean(-1),
            marker,
            color=shade,
            label=name.replace("_", " "),
        )
        regime.plot(cfg.imbalance, records["imbalance theory"].values[name][-1].mean(-1), "-", color=shade, lw=1)
    regime.set(xlabel="imbalance lambda", ylabel="kernel at the end against the start")
    regime.set_title("lines: lambda-balanced closed form", fontsize=9)
    regime.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
