"""Self-distillation: when a student of its own kind beats its teacher (Mobahi et al. 2020; Dang et al. 2026).

Kernel ridge regression with ridge lam is the teacher; the student of weight xi fits ``(1 - xi) y + xi teacher`` with
the same kernel and ridge, and is ``teacher + xi lam d teacher / d lam``. Repeated for ever it is the teacher of ridge
``lam / (1 - xi)``. The best weight has the sign of ``-R'(lam)``: a student helps where the ridge is too small, hurts
where it is too large, where the best student turns away from its teacher, and has nothing to add at the best ridge.
Wide networks, trained from zero with the penalty ``lam |theta - theta_0|^2 / 2n``, stand on the same curve with their
NTK: teachers, then students from the same start, told from students that learn nothing new and from one more ridge.
Students of fresh weights bring errors of finite width of their own: at ridge .03 and xi = -1 they move by .82 +- .08 of
the theory's, which is not told from half the ridge (.72).

Run time: about 40 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, stax
from dynamics.config import Count, Positive, Range
from dynamics.evolve import Drawn, gradient_descent
from dynamics.evolve import study as in_memory
from dynamics.losses import half_mse
from dynamics.models import antisymmetric
from dynamics.runs.figures import measured_style, new_figure
from dynamics.theory.predict import optimal_mixing, self_distillation
from dynamics.types import Batch, Claim, Objective, Observable, Record

SOURCE = "Mobahi, Farajtabar & Bartlett 2020, 'Self-distillation amplifies regularization in Hilbert space'"
SECONDS = 40
OPTIMAL = "Dang, Patil & Rinaldo 2026, 'Optimal unconstrained self-distillation in ridge regression'"
RIDGES = tuple(10.0 ** (np.arange(-16, 7) / 4))
DECADE = 4  # ridges
LENGTH = 0.08


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 16
    """data sets on which networks are trained, each with its own weights"""
    draws: Annotated[int, Range(2)] = 200
    """data sets for the kernel alone"""
    samples: Annotated[int, Range(2)] = 50
    """training samples n"""
    noise: Annotated[float, Positive] = 0.4
    """standard deviation of the label noise"""
    width: Annotated[int, Range(2)] = 1024
    """hidden units of the networks, even"""
    ridge: Annotated[tuple[float, ...], Positive] = (0.03, 0.3, 3.0)
    """their ridges, in units of the kernel's mean diagonal, ascending"""
    xi: Annotated[tuple[float, ...], Range(-4.0, 4.0)] = (-1.0, 1.0)
    """weights of the teacher that their students give it"""
    steps: Annotated[int, Count] = 800
    """heavy-ball steps of each network"""

    @classmethod
    def large(cls) -> Config:
        """Wider networks, more ridges; sizes of ours, as the papers have no such networks. About 15 minutes of a
        core."""
        return cls(seeds=32, width=4096, ridge=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0), steps=1500)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(np.all(np.diff(self.ridge) > 0)), "ridge", "ascending values")
        self.require(self.width % 2 == 0, "width", "even, for half the units start as the others do")


class Result(NamedTuple):
    """``records``: ``kernel`` (``[1, seed, ridge]`` over ``RIDGES``), ``theory`` (the networks' kernel: ``teacher``,
    ``slope``, ``doubled``, ``halved`` ``[1, ridge, seed, test]``, ``errors`` ``[1, ridge, seed, 1 + xi, RIDGES]``),
    ``teacher`` and ``student`` (``[1, (xi,) ridge, seed, ...]``: outputs of networks)."""

    config: Config
    records: dict[str, Record]


def target(x):
    return jnp.sin(4 * jnp.pi * x)


def data(config: Config, stream: int, seed: int):
    """``x [n]`` on the unit interval, noisy labels ``[n, 1]`` and the key of the seed."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), stream), seed)
    kx, ky, key = jax.random.split(key, 3)
    x = jax.random.uniform(kx, (config.samples,))
    return x, (target(x) + config.noise * jax.random.normal(ky, x.shape))[:, None], key


def tests(count: int):
    return (jnp.arange(count) + 0.5) / count


def circle(x):
    """The interval as a circle in the plane, ``[n, 2]``."""
    return jnp.stack([jnp.cos(2 * jnp.pi * x), jnp.sin(2 * jnp.pi * x)], 1)


def network(width: int):
    """One hidden erf layer with biases in NTK parametrisation; f starts at 0.

    It was chosen after a result: ReLU without biases at width 1024 leaves its kernel at small ridges, where a student
    gains some .64 of the theory's.
    """
    return antisymmetric(stax.serial(stax.Dense(width // 2, 3.0, 1.0), stax.Erf(), stax.Dense(1, 2.0)))


def run(config: Config, study=in_memory) -> Result:
    with jax.enable_x64(True):
        records = {"kernel": regression(config, study)}
    return Result(config, {**records, **networks(config, study)})


def regression(config: Config, study) -> Record:
    """Teachers and students of a Gaussian kernel at every ridge, and what the closed forms leave over."""
    kernel = stax.serial(stax.Dense(1), stax.Rbf(0.5 / LENGTH**2)).kernel
    assert kernel is not None

    @jax.jit
    def solved(x, y):
        at = tests(200)
        K, k_test = (kernel(one[:, None], x[:, None], "nngp") for one in (x, at))

        def dual(ridge, y):
            return jnp.linalg.solve(K + ridge * jnp.eye(len(x)), y)

        def of(ridge):
            predict_fn, truth = self_distillation(K, y, ridge, True), target(at)[:, None]
            teacher, student, away = (predict_fn(xi, 2, k_test) for xi in (0.0, 1.0, -0.5))
            taught = k_test @ dual(ridge, 1.5 * y - 0.5 * K @ dual(ridge, y))
            slope = jax.jvp(lambda u: k_test @ dual(jnp.exp(u), y), (jnp.log(ridge),), (1.0,))[1]
            rise = jax.jvp(lambda u: jnp.mean((k_test @ dual(jnp.exp(u), y) - truth) ** 2), (jnp.log(ridge),), (1.0,))
            best, limit = optimal_mixing(teacher, student, truth), k_test @ dual(2 * ridge, y)
            return {
                "teacher": jnp.mean((teacher - truth) ** 2),
                "student": jnp.mean((student - truth) ** 2),
                "square": jnp.mean((student - teacher) ** 2),
                "xi": best,
                "rise": rise[1],
                "solved_off": jnp.abs(away - taught).max(),
                "slope_off": jnp.abs(teacher - 0.5 * slope - away).max(),
                "repeated_off": jnp.abs(predict_fn(0.5, 80, k_test) - limit).max(),
            }

        return jax.lax.map(of, jnp.asarray(RIDGES))

    read = Observable.of_view(lambda view: view.params)
    axes = {"seed": range(config.draws)}
    return study(
        axes, lambda lane: solved(*data(config, 0, lane.seed)[:2]), None, read, steps=0, data=(), label="kernel"
    )


def networks(config: Config, study) -> dict[str, Record]:
    """The NTK's teachers and students, and networks trained to be both."""
    axes = {"ridge": config.ridge, "seed": range(config.seeds)}
    theory = kernel_theory(config, study, axes)
    teacher = trained(config, study, "teacher", axes, theory, lambda lane, y: y)

    def taught(lane, y):
        own = teacher.values["train"][0][config.ridge.index(lane.ridge), lane.seed]
        return (1 - lane.xi) * y + lane.xi * jnp.asarray(own, y.dtype)

    student = trained(config, study, "student", {"xi": config.xi, **axes}, theory, taught)
    return {"theory": theory, "teacher": teacher, "student": student}


def kernel_theory(config: Config, study, axes) -> Record:
    """Teachers and students of the networks' NTK, at their ridges and at all; its scale and largest eigenvalue."""
    kernel, at = network(config.width).kernel, tests(64)
    assert kernel is not None

    @jax.jit
    def known(x, y, ridge):
        K, k_test = (kernel(circle(one), circle(x), "ntk") for one in (x, at))
        scale = jnp.trace(K) / len(x)

        def predicted(ridge, xi=0.0):
            return self_distillation(K, y, ridge)(xi, 2, k_test)[:, 0]

        teacher, student = predicted(ridge), predicted(ridge, 1.0)
        line = jax.vmap(lambda ridge: jnp.stack([predicted(ridge, xi) for xi in (0.0, *config.xi)]))(
            jnp.asarray(RIDGES)
        )
        errors = jnp.mean((line - target(at)) ** 2, -1)
        found = {"teacher": teacher, "slope": student - teacher, "scale": scale, "top": jnp.linalg.eigvalsh(K)[-1]}
        ends = {"doubled": predicted(2 * ridge), "halved": predicted(ridge / 2)}
        return found | ends | {"errors": errors.T}

    def draw(lane):
        return jax.device_get(known(*data(config, 1, lane.seed)[:2], lane.ridge))

    read = Observable.of_view(lambda view: view.params)
    return study(axes, draw, None, read, steps=0, data=(), label="theory")


def trained(config: Config, study, label: str, axes, theory: Record, labels) -> Record:
    """Outputs of networks trained on labels ``(lane, y) -> y``, with ridges in units of the kernel's mean diagonal."""
    model, at = network(config.width), tests(64)

    def draw(lane) -> Drawn:
        x, y, key = data(config, 1, lane.seed)
        params = model.init(key, (-1, 2))[1]  # a student starts where its teacher did
        place = config.ridge.index(lane.ridge), lane.seed
        scale, top = (float(theory.values[name][0][place]) for name in ("scale", "top"))
        ridge = lane.ridge * scale
        values = {"start": params, "ridge_over_n": ridge / len(y), "rate": len(y) / (top + ridge)}
        return Drawn(params, Batch(circle(x), labels(lane, y)), values)

    def make(lane):
        def penalty(params):
            moved = jax.tree.map(lambda p, start: jnp.sum((p - start) ** 2), params, lane.start)
            return 0.5 * lane.ridge_over_n * sum(jax.tree.leaves(moved))

        return gradient_descent(Objective(model.apply, half_mse, penalty), lane.rate, momentum=0.9)

    def read(view):
        L = view.objective
        slope = jax.grad(L)(view.params, view.batch)
        outputs = {"train": model.apply(view.params, view.batch.x), "test": model.apply(view.params, circle(at))}
        return outputs | {"left": sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(slope)) ** 0.5}

    every = {"steps": config.steps, "record_at": [config.steps], "key": jax.random.key(config.seed), "label": label}
    return study(axes, draw, make, [Observable.of_view(read)], **every)


def claims(result: Result) -> list[Claim]:
    """Data sets are independent draws, each with its own networks."""
    return [*identities(result), *kernel_claims(result), *network_claims(result)]


def identities(result: Result) -> list[Claim]:
    values = {name: np.asarray(held)[0] for name, held in result.records["kernel"].values.items()}
    titles = {
        "solved_off": "student against the regression solved, xi = -1/2, largest difference",
        "slope_off": "student against teacher + xi lam d teacher / d lam, xi = -1/2, largest difference",
        "repeated_off": "80 generations, xi = 1/2, against ridge regression with lam / (1 - xi), largest difference",
    }
    out = [Claim.at_most(title, "identity", values[name].max(), 1e-8) for name, title in titles.items()]
    agree = np.mean(np.sign(values["xi"]) == -np.sign(values["rise"]))
    title = "best weight xi* of the sign of -R'(lam), share of all draws and ridges"
    return [*out, Claim.at_least(title, f"identity, {OPTIMAL}", float(agree), 1.0)]


def common(values: dict[str, np.ndarray]) -> np.ndarray:
    """Error ``[draws, ridge]`` of students of the one weight that is best on average over draws."""
    crossed = values["xi"] * values["square"]
    xi = crossed.mean(0) / values["square"].mean(0)
    return values["teacher"] - 2 * xi * crossed + xi**2 * values["square"]


def kernel_claims(result: Result) -> list[Claim]:
    """A decade above and a decade below the ridge of least mean error.

    The share of the best weight is of one weight for all draws, which was chosen after a result: each draw's own best
    weight takes something off at any ridge."""
    values = {name: np.asarray(held)[0] for name, held in result.records["kernel"].values.items()}
    best = int(np.clip(np.argmin(values["teacher"].mean(0)), DECADE, len(RIDGES) - DECADE - 1))
    above, below = best + DECADE, best - DECADE
    gain, change = 1 - common(values) / values["teacher"], np.log(values["student"] / values["teacher"])
    note = f"best ridge {RIDGES[best]:.2g}"
    over, under = "ten times the best ridge", "a tenth of the best ridge"
    xi = values["xi"]
    return [
        Claim.at_most(
            f"best weight xi*, {over}", OPTIMAL, xi[:, above], 0.0,
            rivals={under: xi[:, below], "the teacher itself": 0.0}, note=note,
        ),
        Claim.at_least(
            f"log error of a student of its teacher alone over the teacher's, {over}",
            SOURCE, change[:, above], 0.0, rivals={under: change[:, below], "no change": 0.0}, note=note,
        ),
        Claim.at_most(
            "share of the error that students of the best weight for all draws take off, best ridge",
            OPTIMAL, gain[:, best], 0.05, rivals={over: gain[:, above], under: gain[:, below]}, note=note,
        ),
    ]  # fmt: skip


def moved(result: Result, xi: float, ridge: float) -> tuple[np.ndarray, dict[str, Any]]:
    """``[seeds]``: what networks learn from their teachers, in units of ``xi lam d ridge / d lam``; and rivals'."""
    held = {name: np.asarray(value)[0] for name, value in result.records["theory"].at(ridge=ridge).values.items()}
    step = xi * held["slope"]
    student = result.records["student"].at(xi=xi, ridge=ridge).values["test"][0][..., 0]
    teacher = result.records["teacher"].at(ridge=ridge).values["test"][0][..., 0]

    def along(change):
        return np.sum(change * step, -1) / np.sum(step**2, -1)

    name, other = ("twice the ridge", "doubled") if xi > 0 else ("half the ridge", "halved")
    return along(student - teacher), {"no distillation": 0.0, name: along(held[other] - held["teacher"])}


def errors(result: Result, ridge: float) -> dict[Any, np.ndarray]:
    """Test errors of networks ``[seeds]``: of teachers (0) and of students, by xi."""
    truth = np.asarray(target(tests(64)))
    found = {0.0: result.records["teacher"].at(ridge=ridge).values["test"]}
    found |= {xi: result.records["student"].at(xi=xi, ridge=ridge).values["test"] for xi in result.config.xi}
    return {xi: np.mean((np.asarray(test)[0, ..., 0] - truth) ** 2, -1) for xi, test in found.items()}


def network_claims(result: Result) -> list[Claim]:
    """What students learn beyond their teachers, and whether it helps them.

    A student starts from its teacher's first weights, so that the errors of finite width go with both. From weights of
    its own, at ridge .03 and xi = -1, the value is .82 +- .08 at base seed 0, and half the ridge (.72) not rejected."""
    cfg, out, source = result.config, [], "not measured before; linearised training"
    left = max(np.asarray(result.records[name].values["left"]).max() for name in ("teacher", "student"))
    for ridge in cfg.ridge:
        for xi in cfg.xi:
            title = f"networks, ridge {ridge:g}, xi = {xi:g}: student - teacher along theory, in its units"
            if cfg.width < 512 or cfg.seeds < 3 or xi == 0:
                out.append(Claim.not_applicable(title, source, "needs a width of 512, three seeds and xi other than 0"))
                continue
            value, rivals = moved(result, xi, ridge)
            note = f"largest gradient left {left:.1g}"
            out.append(Claim.close(title, source, value, 1.0, 0.05, rivals=rivals, note=note))
    title = "networks: log error of students of xi = 1 over their teachers', largest ridge"
    if 1.0 not in cfg.xi or len(cfg.ridge) < 2 or cfg.ridge[-1] < 3 or cfg.ridge[0] > 0.03 or cfg.seeds < 3:
        return [*out, Claim.not_applicable(title, SOURCE, "needs xi = 1, ridges from 0.03 to 3 and three seeds")]
    over, under = (errors(result, ridge) for ridge in (cfg.ridge[-1], cfg.ridge[0]))
    rivals = {"smallest ridge": np.log(under[1.0] / under[0.0]), "no change": 0.0}
    return [*out, Claim.at_least(title, SOURCE, np.log(over[1.0] / over[0.0]), 0.0, rivals=rivals)]


def figure(result: Result):
    """The kernel's errors and best weights against the ridge; networks over their kernel."""
    cfg = result.config
    fig, (left, middle, right) = new_figure(1, 3, width=4.4, height=4.0)
    values = {name: np.asarray(held)[0] for name, held in result.records["kernel"].values.items()}
    shown = {"teacher": values["teacher"], "student, xi = 1": values["student"], "student, best xi": common(values)}
    for (label, held), style in zip(shown.items(), ("-", "--", ":")):
        left.plot(RIDGES, held.mean(0), style, color="black", label=label)
    left.set(
        xscale="log", yscale="log", xlabel="ridge lam", ylabel="test error", title="Gaussian kernel, mean of draws"
    )
    low, mid, high = np.quantile(values["xi"], (0.05, 0.5, 0.95), axis=0)
    middle.plot(RIDGES, mid, color="black", label="median of draws")
    middle.fill_between(RIDGES, low, high, color="0.85", label="nine draws of ten")
    middle.axhline(0, color="0.6", lw=0.8)
    middle.set(
        xscale="log", xlabel="ridge lam", ylabel="best weight xi* of the teacher", title="towards or away from it"
    )
    middle.set_yscale("symlog", linthresh=1)
    theory = result.records["theory"].at(ridge=cfg.ridge[0]).values["errors"][0].mean(0)
    found = {ridge: errors(result, ridge) for ridge in cfg.ridge}
    for i, xi in enumerate((0.0, *cfg.xi)):
        style, label = measured_style(i, 4), f"students, xi = {xi:g}" if i else "teachers"
        mean = [found[ridge][xi].mean() for ridge in cfg.ridge]
        error = [found[ridge][xi].std() / cfg.seeds**0.5 for ridge in cfg.ridge]
        right.errorbar(cfg.ridge, mean, error, label=label, **style)
        right.plot(RIDGES, theory[i], color=style["color"], lw=1)
    title = f"networks of width {cfg.width}; lines: their NTK"
    right.set(xscale="log", yscale="log", xlabel="ridge / mean diagonal", ylabel="test error", title=title)
    for axes in (left, middle, right):
        axes.legend(fontsize=7)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
