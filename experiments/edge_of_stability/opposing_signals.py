"""Outliers with opposing signals have an outsized effect on optimisation (Rosenfeld & Risteski 2023).

Early training learns what most samples agree on and enters a narrow valley; progressive sharpening then makes the
iterate swing along the top eigenvector until the loss spikes. The samples that feel it most come in two groups whose
losses move against each other: what lowers one raises the other, and the next step reverses both (section 2, figures
1 and 2). The groups are found once, at the step that raises the loss most, and followed from there; they bear more
than their share of the loss and of the sharpness. Controls: the same images with shuffled labels, white noise with
the true labels, as many samples at random, and stable descent.

A toy (section 3.2, simplified): linear two-layer network ``f = (x W) a`` on ``x = (y, s)``, where s = +-beta on a tenth
of the samples, independent of the label y; the top eigenvector comes to lie along s, with ``lambda = (|a|^2 + |W_s|^2)
mean(s^2)``. Its weights start at .2 of a normal draw, below the edge of its rate; at .3, taken first, starts lay
between .85 and 1.9 of 2/eta, and one of eight diverged.

The swing and the opposition are claimed against stable descent and against groups at random: at the edge much else
swings, and groups chosen by their movement oppose each other in stable descent too. The share of the sharpness that
goes with the groups tells digits from neither control: shuffled labels conflict on the same outlying images, and white
noise has large movers of its own.

Removal (the paper, as remembered, removes none; numbers are those of base seeds 0, 100, 200). At the spike the
sharpness without the groups is 1.2 times 2/eta in place of 1.3: not yet stable, but slower. Trained without them from
the start, a run's loss first rises later (1.10, 1.10, 1.08 times the step on all samples) where without as many at
random it does not (.96, .96, 1.01); initialisations scatter by 3 to 7 %, and four of them do not tell the two apart at
seed 200, where the claim fails. Left out from the spike on, the others' loss grows to .42, .20, .45 of what it does on
all samples (at random .98, 1.23, .96). Without their own groups shuffled labels (.95, .99, .93) and white noise (.95,
1.03, .98) are not delayed, which three standard errors tell from digits at seed 0 and not at 100: a note, no rival.
Without the samples of the largest loss at the spike the first rise is as late or later (1.13 at seed 0, tried besides),
but from the spike on it calms less (.74, .50, 1.09).

Adam against gradient descent (section 4, from memory: normalisation, and the dampening of the first moment). The two
moments are taken apart: an Adam with eps far above its gradients is gradient descent on averaged gradients, one with
b1 = 0 divides without averaging. Averaging alone takes the swing and leaves the speed; dividing alone goes further and
swings as much as gradient descent; Adam, at its default rate, which was not tuned, neither swings nor lags. (At 3e-3
and 1e-2, tried besides, Adam too is at its edge: its groups' path is 1.2 to 1.8 times their displacement, gradient
descent's 10.) Each run's groups are its own.

The bounds of the claims on removal and Adam were set after runs at these three seeds, round numbers between measurement
and controls. At seed 300, tried afterwards, all of them hold but the delay (1.12 +- .07 against .99). That was measured
first against two removals at random, whose own scatter hid it at two seeds, and then at every fourth step, which
changed nothing.

In preset ``large`` (1000 digits, eight initialisations) removal delays clearly (1.21 +- .06 against .98 at random), and
three bounds of the quick preset's do not hold: a sample of the groups, now a tenth, bears 1.57 times the mean loss at
the spike, white noise's 1.52 (1.5 was to lie between them); gradient descent's groups move 1.36 times as much as the
mean, Adam's 1.26 (1.25 was to); and Adam's path is 2.1 times its displacement (at most 1.5; gradient descent's 39).

Run time: about 45 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from dynamics import config, linalg, operators
from dynamics.config import Count, Positive
from dynamics.evolve import Drawn, every, gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.runs.figures import measured_style, new_figure, rival_style
from dynamics.types import Batch, Claim, Data, Objective, Record

from ._digits import setting
from ._opposing import draw_removed, draw_rules, removal_claims, rule_claims, run_removed, run_rules

SOURCE = (
    "Rosenfeld & Risteski 2023, 'Outliers with opposing signals have an outsized effect on neural network optimization'"
)
SECONDS = 45
KINDS = ("digits", "shuffled labels", "white noise")
APART = 4  # steps between two places where a spike is looked for


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 4
    """number of initialisations"""
    eta: Annotated[float, Positive] = 0.4
    """learning rate at the edge of stability"""
    stable_eta: Annotated[float, Positive] = 0.02
    """learning rate of the stable control"""
    adam_eta: Annotated[float, Positive] = 1e-3
    """learning rate of Adam: its default"""
    steps: Annotated[int, Count] = 400
    """gradient steps within which the loss spikes"""
    window: Annotated[int, config.Range(4)] = 60
    """consecutive steps followed from the spike"""
    group: Annotated[int, Count] = 15
    """samples in each of the two groups"""
    strength: Annotated[float, Positive] = 8.0
    """size beta of the opposing feature of the toy"""
    samples: Annotated[int, config.Range(20, 1797)] = 300
    """training digits n"""
    width: Annotated[int, Count] = 50
    """tanh units of a hidden layer"""
    depth: Annotated[int, Count] = 3
    """hidden layers"""

    @classmethod
    def large(cls) -> Config:
        """1000 digits, two layers of 200, eight seeds, followed for 200 steps: some twenty minutes on two cores.

        The paper has ResNet-18, VGG-11 and a ViT on CIFAR-10.
        """
        return cls(seeds=8, samples=1000, width=200, depth=2, steps=800, window=200, group=50)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(2 * self.group < self.samples, "group", f"below half of the {self.samples} samples")


class Result(NamedTuple):
    """``records``: 'approach' ``[T, data, seeds]`` up to the spike; 'spike' ``[1, data, seeds]``, what
    ``found_groups`` reads there; 'edge' ``[T, 1, seeds, n]`` and 'stable', every sample's loss from there; 'without'
    ``[T, case, seeds]``, 'whole' ``[T, data, seeds]`` and 'after' ``[T, left, seeds]``, of ``run_removed``; 'rules'
    ``[T, memory, eps, seeds, n]``, of ``run_rules``; 'toy' ``[T, strengths, seeds]``."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """To the spike on all data, the groups there, the steps from it and those of a stable control, runs without the
    groups and by other rules, then the toy."""
    data, L, start = setting(config)
    kinds = [Data(data.train), *controls(data, jax.random.fold_in(jax.random.key(config.seed), 1))]
    axes, key = {"data": range(3), "seed": range(config.seeds)}, jax.random.key(config.seed)
    unravel = ravel_pytree(start(0))[1]

    def stepped(params, batch):
        return jax.tree.map(lambda p, g: p - config.eta * g, params, jax.grad(L)(params, batch))

    def read(params, batch):
        loss = L(params, batch)
        return {"loss": loss, "rise": L(stepped(params, batch), batch) - loss, "params": ravel_pytree(params)[0]}

    approach = study(
        axes,
        draw=lambda lane: (kinds[lane.data], start(lane.seed)),
        make=lambda lane: gradient_descent(L, config.eta),
        read=[read], steps=config.steps, record_at=every(APART, config.steps), key=key, label="approach",
    )  # fmt: skip
    place = spike(approach)

    def at_spike(kind, seed):
        return unravel(jnp.asarray(approach.values["params"][place[kind, seed], kind, seed]))

    def found(lane):
        return Drawn(at_spike(lane.data, lane.seed), kinds[lane.data])

    spikes = study(
        axes, found, make=None, read=[found_groups(config, L, stepped)], steps=0, key=key, label="spike"
    )  # fmt: skip

    def follow(label, eta, draw, steps):
        return study(
            {"data": (0,), "seed": range(config.seeds)},
            draw,
            make=lambda lane: gradient_descent(L, eta),
            read=[lambda params, batch: {"losses": losses(L, params, batch)}],
            steps=steps + config.window, record_at=steps + every(1, config.window), key=key, label=label,
        )  # fmt: skip

    records = {
        "approach": approach._replace(values={k: v for k, v in approach.values.items() if k != "params"}),
        "spike": spikes,
        "edge": follow("edge", config.eta, found, 0),
        "stable": follow("stable", config.stable_eta, lambda lane: (kinds[0], start(lane.seed)), config.steps),
        **run_removed(config, L, kinds, start, at_spike, spikes.values, study),
        "rules": run_rules(config, L, kinds[0], start, losses, study),
        "toy": run_toy(config, study),
    }
    return Result(config, records)


def controls(data: Data, key) -> list[Data]:
    """The same inputs with labels shuffled, and white noise with the same labels."""
    x, y = data.train
    return [Data(Batch(x, jax.random.permutation(key, y))), Data(Batch(jax.random.normal(key, x.shape), y))]


def spike(approach: Record) -> np.ndarray:
    """The reading whose next step raises the loss most, ``[data, seeds]``."""
    return np.argmax(np.nan_to_num(approach.values["rise"], nan=-np.inf), 0)


def losses(L: Objective, params, batch):
    """``[n]``, of every sample."""
    return 0.5 * jnp.sum((L.apply(params, batch.x) - batch.y) ** 2, -1)


def found_groups(config: Config, L: Objective, stepped):
    """Finds the two groups whose losses the next step moves most, down and up.

    Reads the samples in the ``order`` of that change, their ``losses``, the ``sharpness``, and the share of it that
    goes with the groups (``removed``), or with as many samples at random (``removed_at_random``).
    """
    size = config.group

    def read(params, batch):
        def top(rows):
            matvec, dimension, dtype, _ = operators.hessian(L, params, Batch(batch.x[rows], batch.y[rows]))
            start = jax.random.normal(jax.random.key(1), (dimension,), dtype)
            return linalg.extreme_eigenvalues(matvec, start, 25)[0].value * rows.size / config.samples

        before = losses(L, params, batch)
        order = jnp.argsort(losses(L, stepped(params, batch), batch) - before)
        at_random = jax.random.permutation(jax.random.key(config.seed), config.samples)[2 * size :]
        whole = top(order)
        removed, blindly = 1 - jax.lax.map(top, jnp.stack([order[size:-size], at_random])) / whole  # compiled once
        return {
            "order": order,
            "losses": before,
            "sharpness": whole,
            "removed": removed,
            "removed_at_random": blindly,
        }

    return read


def run_toy(config: Config, study) -> Record:
    """200 samples; a tenth carry s = +-beta, half of them for each label: beta as said, and 1, no outlier."""
    y = np.where(np.arange(200) % 2, 1.0, -1.0)
    sign = np.where(np.arange(200) < 20, np.where(np.arange(200) // 2 % 2, 1.0, -1.0), 0.0)
    L = Objective(lambda params, x: x @ params[0] @ params[1], half_mse)
    key = jax.random.key(config.seed)

    def draw(lane):
        own = jax.random.fold_in(key, lane.seed)
        params = (0.2 * jax.random.normal(own, (2, 8)), 0.2 * jax.random.normal(jax.random.fold_in(own, 1), (8, 1)))
        x = jnp.asarray(np.stack([y, lane.strength * sign], 1), jnp.float32)
        return Data(Batch(x, jnp.asarray(y[:, None], jnp.float32))), params

    def read(params, batch):
        matvec, size, _, unravel = operators.hessian(L, params, batch)
        top, _ = linalg.extreme_eigenvalues(matvec, jax.random.normal(jax.random.key(0), (size,)), 20)
        weights = unravel(top.vector)[0]
        return {
            "alignment": jnp.sum(weights[1] ** 2) / jnp.sum(weights**2),
            "sharpness": top.value,
            "readout": jnp.sum(params[1] ** 2) * jnp.mean(batch.x[:, 1] ** 2),
            "feature": jnp.sum(params[0][1] ** 2) * jnp.mean(batch.x[:, 1] ** 2),
        }

    # The opposing feature alone has curvature |a|^2 mean(s^2), and |a|^2 grows to about 1 once y is learnt.
    return study(
        {"strength": (config.strength, 1.0), "seed": range(config.seeds)},
        draw,
        make=lambda lane: gradient_descent(L, 1.5 / (0.1 * config.strength**2)),
        read=[read],
        steps=2 * config.steps,
        record_at=[0, 2 * config.steps],
        key=key,
        label="toy",
    )


def two(losses, order, group: int) -> list[np.ndarray]:
    """Mean losses ``[T, seeds]`` of the ``group`` samples first in ``order [seeds, n]``, and of those last.

    Args:
        losses: ``[T, seeds, n]``.
        order, group: of the samples; those in each group.
    """
    order = np.asarray(order, int)[None]
    return [np.take_along_axis(losses, rows, -1).mean(-1) for rows in (order[..., :group], order[..., -group:])]


def swing(losses, order, group: int) -> np.ndarray:
    """Difference of the last group's mean loss and the first's, ``[T, seeds]``; as ``two``."""
    first, last = two(losses, order, group)
    return last - first


def opposition(losses, order, group: int) -> np.ndarray:
    """Correlation of the two groups' changes, the first change (which chose them) left out, ``[seeds]``; as ``two``."""
    return correlation(*(np.diff(np.asarray(path, float), axis=0)[1:] for path in two(losses, order, group)))


def correlation(x, y) -> np.ndarray:
    """About 0, over axis 0; 0 where one never moves."""
    size = np.sqrt(np.sum(x**2, 0) * np.sum(y**2, 0))
    return np.sum(x * y, 0) / np.where(size > 0, size, 1)


def persistence(path) -> np.ndarray:
    """Correlation of successive changes of ``path [T, seeds]``, the first change (which chose the groups) left out:
    -1 where each step undoes the one before, 1 where all go one way, ``[seeds]``."""
    change = np.diff(np.asarray(path, float), axis=0)[1:]
    return correlation(change[:-1], change[1:])


def groups(result: Result, kind: str) -> np.ndarray:
    """``swing`` along 'edge', its groups found at the spike, or along 'stable', found at its first step."""
    cfg, losses = result.config, np.asarray(result.records[kind].values["losses"])[:, 0]
    order = result.records["spike"].values["order"][0, 0] if kind == "edge" else np.argsort(losses[1] - losses[0])
    return swing(losses, order, cfg.group)


def claims(result: Result) -> list[Claim]:
    """Means over seeds; controls are paired with them."""
    cfg, (approach, at, toy) = result.config, (result.records[k].values for k in ("approach", "spike", "toy"))
    share, found = 2 * cfg.group / cfg.samples, []
    edge, stable = (persistence(groups(result, kind)) for kind in ("edge", "stable"))
    name = "two groups found at the spike: correlation of successive changes of their difference, after it"
    found.append(
        Claim.at_most(name, "figure 2", edge, -0.5, rivals={f"stable descent (eta = {cfg.stable_eta:g})": stable})
    )

    path, order = np.asarray(result.records["edge"].values["losses"])[:, 0], at["order"][0, 0]
    apart, blindly = (opposition(path, rows, cfg.group) for rows in (order, np.sort(order)))
    name = "the same groups: correlation of the two's changes, after it"
    found.append(Claim.at_most(name, "figure 2", apart, 0.0, rivals={"two groups at random": blindly}))

    before = np.arange(len(approach["loss"]))[:, None, None] <= spike(result.records["approach"])
    calm = np.where(before, approach["loss"], np.inf).min(0) / approach["loss"][0]  # [data, seeds]
    rivals = {kind: calm[i] for i, kind in enumerate(KINDS) if i}
    name = "lowest loss before the spike over the start: what most samples agree on is learnt"
    found.append(Claim.at_most(name, "section 2", calm[0], 0.2, rivals=rivals))

    order, losses = np.asarray(at["order"][0], int), np.asarray(at["losses"][0])  # [data, seeds, n]
    chosen = np.concatenate([order[..., : cfg.group], order[..., -cfg.group :]], -1)
    mean = np.maximum(losses.mean(-1), 1e-30)
    borne = np.take_along_axis(losses, chosen, -1).mean(-1) / mean
    blindly = losses[0, :, : 2 * cfg.group].mean(-1) / mean[0]  # the first of the samples, which are shuffled
    rivals = {kind: borne[i] for i, kind in enumerate(KINDS) if i} | {"samples at random": blindly}
    name = "loss of a sample in the groups over the mean, at the spike"
    found.append(Claim.at_least(name, "figure 1", borne[0], 1.5, rivals=rivals))

    removed, blindly = (np.asarray(at[key][0]) / share for key in ("removed", "removed_at_random"))
    note = ", ".join(f"{kind} {value:.2f}" for kind, value in zip(KINDS[1:], removed[1:].mean(-1)))
    name = "sharpness that goes with the groups over their share of the samples"
    rivals = {"as many samples at random": blindly[0]}
    found.append(Claim.at_least(name, "section 2.2", removed[0], 1.25, rivals=rivals, note=note))

    found += removal_claims(result.records, cfg, KINDS)
    found += rule_claims(result.records["rules"], result.records["stable"], cfg)

    outlying, plain = (np.asarray(toy["alignment"])[-1, i] for i in range(2))
    name = "toy: share of the top eigenvector on the opposing feature"
    found.append(Claim.at_least(name, "section 3.2", outlying, 0.9, rivals={"no outlier (beta = 1)": plain}))
    top, readout, feature = (np.asarray(toy[key])[-1, 0] for key in ("sharpness", "readout", "feature"))
    name = "toy: sharpness over (|a|^2 + |W_s|^2) mean(s^2)"
    rivals = {"|a|^2 alone": readout / (readout + feature), "|W_s|^2 alone": feature / (readout + feature)}
    found.append(Claim.close(name, "section 3.2", top / (readout + feature), 1, 0.05, rivals=rivals))
    return found


def figure(result: Result) -> Figure:
    """Losses of the two groups from the spike, what they bear of the sharpness against the controls; runs without them,
    and by other rules."""
    cfg = result.config
    picture, ((left, middle, right), (start, after, rules)) = new_figure(2, 3)
    losses = np.asarray(result.records["edge"].values["losses"])[:, 0, 0]
    order = np.asarray(result.records["spike"].values["order"][0, 0, 0], int)
    for i, (rows, label) in enumerate(((order[: cfg.group], "fell"), (order[-cfg.group :], "rose"))):
        style = measured_style(i, 2) | {"linestyle": "-" if i else "--", "markersize": 4}
        left.plot(losses[:, rows].mean(1), **style, label=f"group that {label} at the spike")
    left.set(xlabel="steps after the spike", ylabel="mean loss of the group")
    for i, kind in enumerate(("edge", "stable")):
        path = groups(result, kind)[:, 0]
        style = {**measured_style(0, 2), "linestyle": "-", "markersize": 4} if kind == "edge" else rival_style()
        middle.plot(path / np.abs(path).max().clip(1e-12), **style, label="at the edge" if i == 0 else "stable descent")
    middle.set(xlabel="step", ylabel="difference of the groups' losses (scaled)")
    spikes = result.records["spike"].values
    removed = np.asarray(spikes["removed"][0]) * cfg.samples / (2 * cfg.group)
    blindly = np.asarray(spikes["removed_at_random"][0, 0]) * cfg.samples / (2 * cfg.group)
    right.plot(np.zeros(cfg.seeds), removed[0], **measured_style(0, 2))
    for i, values in enumerate((removed[1], removed[2], blindly), 1):
        right.plot(np.full(cfg.seeds, i), values, **{**rival_style(), "linestyle": "none"}, marker="o", mfc="none")
    right.axhline(1, **rival_style())
    right.set_xticks(range(4), ["digits", "shuffled\nlabels", "white\nnoise", "random\nsamples"])
    right.set(ylabel="sharpness that goes with the groups\nover their share of samples")
    left.legend()
    middle.legend()
    draw_removed(start, result.records["without"], "loss", "step")
    draw_removed(after, result.records["after"], "test_loss", "steps after the spike")
    draw_rules(rules, result.records["rules"], cfg.group)
    return picture


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
