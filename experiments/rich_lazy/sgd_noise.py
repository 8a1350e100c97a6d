"""Dissecting SGD noise: when the temperature T = eta/B sets what is learnt (Sclocchi, Geiger & Wyart 2023).

Hinge loss with margin 1 on ``F = alpha (f - f_0)``, divided by alpha, so that one step is
``dw = T sum_batch [y F < 1] y grad f``, until every sample has its margin. Small T: gradient flow, ``|dw| ~ 1/alpha``
when lazy. Large T: noise decides, ``|dw|/|w_0| ~ T^delta P^gamma`` after a time ``t* ~ T P^b``: the more samples there
are to fit, the larger must the weights grow beside their noise. So the ``T_c ~ P^-a`` at which the network escapes the
kernel regime falls with P, ``a = gamma/delta``. In a perceptron whose data have density ``|x_1|^chi`` at the boundary,
in any dimension, the noisy end state has ``w_1/|w_perp| ~ P^(1/(1+chi))``: it must grow until the samples nearest to
the boundary are right. (Where the density is uniform, chi = 0, there are fewer samples here, since fitting them takes
some P^2.5 updates, where chi = 1 takes P^2; their range was chosen by that time.) The (alpha, T) phase diagram on the
parity of digits is one vmapped program; a run that diverges is never counted as fitted. Networks trained on shuffled
labels are the control: they fit, and know nothing of the test.

Run time: about 100 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, stax
from dynamics.config import Count, Positive, Range
from dynamics.empirical import empirical_ntk_fn
from dynamics.evolve import Drawn
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, rival_style, ticks_at
from dynamics.statistics import kernel_distance, power_law, weight_norm
from dynamics.tasks.images import digits, mnist
from dynamics.types import Batch, Claim, Dynamics, Observable, Record

from ._hinge import hinge_sgd, perceptron, perceptron_samples, run_perceptron

SOURCE = "Sclocchi, Geiger & Wyart 2023, 'Dissecting the effects of SGD noise in distinct regimes of deep learning'"
SECONDS = 100
ESCAPE = 0.1  # relative movement of the weights that ends the kernel regime


def _powers(exponents) -> tuple[float, ...]:
    return tuple(float(2.0**p) for p in exponents)


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 6
    """initial weights of the images' network, over (P, T)"""
    phase_seeds: Annotated[int, Count] = 2
    """of these, initial weights of the (alpha, T) phase diagram"""
    dataset: Literal["digits", "mnist"] = "digits"
    """images whose parity is learnt: 8 x 8 digits of scikit-learn, or MNIST (downloaded once)"""
    alpha: Annotated[tuple[float, ...], Positive] = _powers(range(-6, 16, 3))
    """output scale alpha, ascending; the largest is used for the laws in T and P"""
    temperature: Annotated[tuple[float, ...], Positive] = _powers(range(-11, 5, 2))
    """T = learning rate / batch size, ascending"""
    samples: Annotated[tuple[int, ...], Range(32, 60_000)] = (128, 256, 512, 1024)
    """training samples P of the T_c sweep; the phase diagram uses 512, or the largest if there is no 512"""
    hidden: Annotated[int, Count] = 32
    """units in each hidden layer of the network"""
    batch: Annotated[int, Count] = 16
    """batch size B of the network"""
    depth: Annotated[int, Count] = 2
    """hidden layers of the network"""
    activation: Literal["gelu", "relu"] = "gelu"
    """non-linearity of the network"""
    updates: Annotated[int, Range(50)] = 6000
    """SGD steps of the network, at most"""
    chi: Annotated[tuple[float, ...], Range(0.0)] = (0.0, 1.0, 3.0)
    """exponents of the perceptron's density at the boundary"""
    perceptron_samples: Annotated[tuple[int, ...], Count] = (256, 512, 1024, 2048, 4096)
    """training samples P of the perceptron, ascending, where chi >= 1"""
    uniform_samples: Annotated[tuple[int, ...], Count] = (64, 128, 256, 512)
    """training samples P of the perceptron, ascending, where chi < 1"""
    perceptron_seeds: Annotated[int, Count] = 16
    """draws of the perceptron's data"""
    perceptron_dim: Annotated[tuple[int, ...], Range(2)] = (16, 32)
    """dimensions d of the perceptron's data"""
    perceptron_updates: Annotated[int, Range(1024)] = 2**18
    """SGD steps of the perceptron (B = 4, eta = 1024), at most"""

    @classmethod
    def large(cls) -> Config:
        """A finer phase diagram, longer training, of the same networks; three minutes of a core."""
        alpha, temperature = _powers(range(-6, 16, 2)), _powers(range(-11, 4))
        return cls(alpha=alpha, temperature=temperature, updates=12_000)

    @classmethod
    def deep(cls) -> Config:
        """Five hidden ReLU layers of 128 units on MNIST, nearer to the paper's networks (which learn CIFAR-10 too).

        Reads MNIST (downloaded once): half an hour on two cores. T_c and its exponent are not read: at T = 1 the
        weights of few samples have moved by .06, and at T = 4, the next, nothing is fitted.
        """
        temperature, samples = _powers(range(-12, 6, 2)), tuple(2**p for p in range(8, 14))
        network = {"depth": 5, "activation": "relu", "hidden": 128, "samples": samples}
        return cls(seeds=4, dataset="mnist", temperature=temperature, updates=20_000, **network)

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("alpha", "temperature", "samples", "perceptron_samples", "uniform_samples"):
            self.require(bool(np.all(np.diff(getattr(self, field)) > 0)), field, "ascending values")
        self.require(self.phase_seeds <= self.seeds, "phase_seeds", f"at most {self.seeds} seeds")
        self.require(self.dataset == "mnist" or self.samples[-1] < 1797, "samples", "at most 1796 for digits")


class Result(NamedTuple):
    """``records``: 'perceptron, chi = <chi>' ``[1, d, P, draws]``, 'phase' ``[1, alpha, T, seeds]``, 'samples' ``[1, P,
    T, seeds]``, 'shuffled' ``[1, 1, T, seeds]`` (labels, at the least P), 'linear' (test error ``[1]`` of least squares
    at the largest P); every reading is NaN where the run diverged or did not fit its training set."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """The perceptron, then the network on images, over (alpha, T) and over (P, T)."""
    perceptrons = {perceptron(chi): run_perceptron(config, chi, study) for chi in config.chi}
    return Result(config, {**perceptrons, **run_images(config, study)})


def images_task(config: Config):
    """The network d-h-...-h-1, and the parity of the images: training and test samples."""
    act, scale = {"gelu": (stax.Gelu(), 1.0), "relu": (stax.Relu(), 2.0**0.5)}[config.activation]
    layers = [layer for _ in range(config.depth) for layer in (stax.Dense(config.hidden, W_std=scale), act)]
    load = partial(mnist, download=True) if config.dataset == "mnist" else digits
    data = load(max(config.samples), None, seed=config.seed, target="parity", scale="standard")
    return stax.serial(*layers, stax.Dense(1)), *(Batch(*map(jnp.asarray, part)) for part in (data.train, data.test))


def run_images(config: Config, study) -> dict[str, Record]:
    (model, data, test), usual = images_task(config), Config()
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    ntk, blocks = jax.jit(partial(empirical_ntk_fn(model.apply), data.x[:64], None)), -(-config.updates // 50)

    def read(lane, view):
        params, updates, fitted = view.state
        moved = weight_norm(jax.tree.map(jnp.subtract, params, lane.start))
        values = {
            "weight_change": moved / weight_norm(lane.start),
            "kernel_distance": kernel_distance(ntk(params), lane.kernel),
            "test_error": jnp.mean((model.apply(params, test.x) - lane.test_origin) * test.y <= 0),
            "updates": updates,
        }
        return {name: jnp.where(fitted, value, jnp.nan) for name, value in values.items()} | {"fitted": fitted * 1.0}

    def train(label, axis, values, most, number, shuffle=False) -> Record:
        """Over ``axis`` and the temperatures, at the largest alpha and ``most`` samples where the axis is not these."""
        used = Batch(data.x[:most], data.y[:most])
        count = config.phase_seeds if label == "phase" else config.seeds

        @jax.jit
        def start(key) -> Drawn:
            w = model.init(key, (-1, data.x.shape[-1]))[1]
            origin = {"origin": model.apply(w, used.x), "test_origin": model.apply(w, test.x)}
            own = used._replace(y=jax.random.permutation(key, used.y)) if shuffle else None
            return Drawn(w, own, {"start": w, "kernel": ntk(w), **origin})

        def make(lane) -> Dynamics:
            at = {"alpha": config.alpha[-1], "samples": most, **lane}
            settings = at["alpha"], at["temperature"], at["samples"], at["origin"]
            return hinge_sgd(model.apply, *settings, batch=config.batch, block=50)

        return study(
            {axis: values, "temperature": config.temperature, "seed": range(count)},
            draw=lambda lane: start(keys[lane.seed]),
            make=make,
            read=lambda lane: Observable.of_view(partial(read, lane)),
            steps=blocks,
            record_at=[blocks],
            key=jax.random.key(config.seed),
            data=None if shuffle else used,
            label=label,
            stream=lambda at: number(at[axis], at["temperature"]) * usual.seeds + at["seed"],
        )

    alphas, temperatures, counts = len(usual.alpha), len(usual.temperature), len(usual.samples)
    samples, most = config.samples, middle(config.samples)

    def at_samples(i, j):
        return alphas * temperatures + j * counts + i

    return {
        "phase": train("phase", "alpha", config.alpha, most, lambda i, j: i * temperatures + j),
        "samples": train("samples", "samples", samples, samples[-1], at_samples),
        "shuffled": train("shuffled", "samples", samples[:1], samples[0], at_samples, shuffle=True),
        "linear": least_squares(data, test),
    }


def least_squares(data: Batch, test: Batch) -> Record:
    """``test_error [1]`` of the affine function of the pixels that is nearest to the labels."""
    inputs = [jnp.append(x, jnp.ones((len(x), 1)), axis=1) for x in (data.x, test.x)]
    fit = jnp.linalg.pinv(inputs[0]) @ data.y
    error = np.mean(np.asarray(inputs[1] @ fit * test.y) <= 0)
    return Record(np.zeros(1, int), np.zeros(1), {"test_error": np.array([error])})


def middle(samples: tuple[int, ...]) -> int:
    """The phase diagram's number of samples."""
    return 512 if 512 in samples else samples[-1]


def critical_temperature(config: Config, record: Record) -> np.ndarray:
    """``T_c [seeds, P]``: where ``|dw|/|w_0|`` reaches ``ESCAPE``, the kernel regime's end (log interpolation)."""
    change = np.asarray(record.values["weight_change"])[0]  # [P, T, seeds]
    found = np.full((config.seeds, len(config.samples)), np.nan)
    log_t = np.log(config.temperature)
    for i, row in enumerate(change):
        for seed, column in enumerate(np.log(row.T / ESCAPE)):
            after = np.flatnonzero((column[1:] > 0) & (column[:-1] <= 0))
            if after.size:
                j = after[0]
                found[seed, i] = np.exp(np.interp(0.0, column[j : j + 2], log_t[j : j + 2]))
    return found


def claims(result: Result) -> list[Claim]:
    cfg, records, out = result.config, result.records, []
    source, counts = "Sclocchi et al. 2023, perceptron", [perceptron_samples(cfg, chi) for chi in cfg.chi]
    enough = min(map(len, counts)) > 2 and len(cfg.chi) > 1
    for i, dim in enumerate(cfg.perceptron_dim):
        ratios = [records[perceptron(chi)].values["ratio"][0, i] for chi in cfg.chi]  # [P, draws]
        fits = [power_law(size, ratio.T) for size, ratio in zip(counts, ratios)] if enough else []
        for j, chi in enumerate(cfg.chi):
            name = f"perceptron, d = {dim}, chi = {chi:g}: w_1/|w_perp| ~ P^p: p"
            if not enough:
                out.append(Claim.not_applicable(name, source, "needs three sample counts and two chi"))
                continue
            rivals = {f"data of chi = {cfg.chi[k]:g}": fits[k].slopes for k in range(len(fits)) if k != j}
            rivals["P has no effect"] = 0.0
            note = f"95 % interval {fits[j]}, {fits[j].used} of {cfg.perceptron_seeds} seeds fitted throughout"
            out.append(Claim.close(name, source, fits[j].slopes, 1 / (1 + chi), 0.06, rivals=rivals, note=note))
    return [*out, *noise_claims(result)]


def slope(x, y: np.ndarray) -> np.ndarray:
    """Powers of x, by least squares along the first axis of ``y [n, ...]``."""
    return np.polyfit(np.log(x), np.log(y).reshape(len(y), -1), 1)[0].reshape(y.shape[1:])


def noise_claims(result: Result) -> list[Claim]:
    """At the largest alpha: powers of T (mean over P) and of P (mean over fitted T), seed by seed.

    Seeds are initial weights, on one set of images. The paper bounds no test error: the claims are that it is below
    that of a linear fit, and half of chance.
    """
    cfg, values = result.config, result.records["samples"].values
    source, head = "Sclocchi et al. 2023, section 3", f"{cfg.dataset}, alpha = {cfg.alpha[-1]:g}"
    usable = np.isfinite(values["weight_change"][0]).all((0, 2))  # [T]
    names = {
        "delta": "|dw|/|w_0| ~ T^delta: delta",
        "t*": "time to fit t* ~ T^p: p",
        "gamma": "|dw|/|w_0| ~ P^gamma: gamma",
        "b": "time to fit t* ~ P^b: b",
        "a": f"T_c ~ P^-a, where |dw|/|w_0| = {ESCAPE:g}: a - gamma/delta",
        "falls": "T_c ~ P^-a: a",
        "kernel": "noise moves the kernel: |K - K_0|/|K_0| at the largest T that fits",
        "test": "test error, mean over T, at most samples, less that of least squares on the pixels",
        "shuffled": f"test error, mean over T, at P = {cfg.samples[0]}, below half of chance",
    }
    names = {key: f"{head}: {name}" for key, name in names.items()}
    if len(cfg.samples) < 3 or cfg.seeds < 3 or cfg.alpha[-1] < 1000 or len(cfg.temperature) < 3:
        note = "needs alpha >= 1000, and three temperatures, sample counts and seeds"
        return [Claim.not_applicable(name, source, note) for name in names.values()]
    if usable.sum() < 3:
        note = "fewer than three temperatures fitted"
        return [Claim.at_most(name, source, np.nan, 0.0, note=note) for name in names.values()]
    t, size = np.asarray(cfg.temperature)[usable], np.asarray(cfg.samples, float)
    change, updates, kernel, error = (
        values[name][0][:, usable] for name in ("weight_change", "updates", "kernel_distance", "test_error")
    )  # [P, T, seeds]
    by_t = {"delta": change, "t*": updates * t[:, None]}
    power = {name: slope(t, y.swapaxes(0, 1)).mean(0) for name, y in by_t.items()}
    power |= {name: slope(size, y).mean(0) for name, y in (("gamma", change), ("b", updates))}
    critical = critical_temperature(cfg, result.records["samples"])  # [seeds, P]
    power["falls"] = -slope(size, critical.T)
    ratio = power["gamma"] / power["delta"]
    none, control = {"no effect": 0.0}, result.records["shuffled"].values["test_error"][0, 0]
    fitted = np.isfinite(control).all(-1)  # temperatures
    shuffled = control[fitted].mean(0) if fitted.any() else np.nan
    linear = float(result.records["linear"].values["test_error"][0])
    same = {"least squares on the pixels": linear - linear}
    frozen = {"frozen kernel": 0.0, "least noise": kernel[-1, 0]}
    rich = feature_learning_slope(result)
    return [
        Claim.close(names["delta"], source, power["delta"], 1.0, 0.1, rivals={"T has no effect": 0.0} | rich),
        Claim.close(names["t*"], source, power["t*"], 1.0, 0.15, rivals={"T has no effect": 0.0}),
        Claim.at_least(names["gamma"], source, power["gamma"], 0.1, rivals=none),
        Claim.at_least(names["b"], source, power["b"], 0.5, rivals=none),
        Claim.close(names["a"], source, power["falls"] - ratio, 0.0, 0.1, rivals={"T_c the same for all P": -ratio}),
        Claim.at_least(names["falls"], source, power["falls"], 0.1, rivals=none),
        Claim.at_least(names["kernel"], source, kernel[-1, -1], 0.2, rivals=frozen),
        Claim.at_most(names["test"], source, error[-1].mean(0) - linear, 0.0, rivals=same, note=f"of {linear:.3f}"),
        Claim.at_most(names["shuffled"], source, error[0].mean(0), 0.25, rivals={"shuffled labels": shuffled}),
    ]


def feature_learning_slope(result: Result) -> dict[str, np.ndarray]:
    """The power of T at the least alpha < 1 whose networks all fit at three temperatures: gradient flow sets |dw|."""
    cfg, change = result.config, result.records["phase"].values["weight_change"][0]  # [alpha, T, seeds]
    for alpha, rows in zip(cfg.alpha, change):
        usable = np.isfinite(rows).all(-1)
        if alpha < 1 and usable.sum() > 2:
            return {f"alpha = {alpha:g}": slope(np.asarray(cfg.temperature)[usable], rows[usable])}
    return {}


def mean_of_fitted(values: np.ndarray) -> np.ndarray:
    """Mean over seeds that fitted; NaN where none did."""
    fitted = np.isfinite(values)
    total = np.where(fitted, values, 0.0).sum(-1)
    return np.where(fitted.any(-1), total / np.maximum(fitted.sum(-1), 1), np.nan)


def figure(result: Result):
    """The perceptron's exponents, the (alpha, T) phase diagram of the kernel, T_c against P, and the test error."""
    cfg, records = result.config, result.records
    fig, axes = new_figure(2, 2, width=4.6, height=3.4)
    simple, phase, critical, errors = axes.ravel()
    for i, chi in enumerate(cfg.chi):
        size, values = np.asarray(perceptron_samples(cfg, chi), float), records[perceptron(chi)].values["ratio"][0, 0]
        middle_ratio = np.exp(mean_of_fitted(np.log(values)))
        simple.plot(size, middle_ratio, label=f"chi = {chi:g}", **measured_style(i, len(cfg.chi)))
        simple.plot(size, middle_ratio[-1] * (size / size[-1]) ** (1 / (1 + chi)), "k-", lw=1)
    simple.set(xscale="log", yscale="log", xlabel="samples P", ylabel="w_1 / |w_perp|; lines: P^(1/(1+chi))")
    ticks_at(simple.xaxis, sorted({size for chi in cfg.chi for size in perceptron_samples(cfg, chi)}))
    simple.legend(fontsize=8)
    level = np.log10(np.exp(mean_of_fitted(np.log(records["phase"].values["kernel_distance"][0]))))
    if min(level.shape) > 1:
        drawn = phase.pcolormesh(cfg.temperature, cfg.alpha, level, shading="nearest", cmap="cividis")
    else:
        drawn = phase.scatter(*np.meshgrid(cfg.temperature, cfg.alpha), c=level, cmap="cividis")
        phase.set(xlim=(cfg.temperature[0] / 2, 2 * cfg.temperature[-1]), ylim=(cfg.alpha[0] / 2, 2 * cfg.alpha[-1]))
    fig.colorbar(drawn, ax=phase, label="log10 |K - K_0| / |K_0|")
    noisy = records["phase"].values["weight_change"][0, -1] / np.asarray(cfg.temperature)[:, None]
    escape = ESCAPE / np.exp(mean_of_fitted(np.log(noisy).ravel()))
    if np.isfinite(escape):
        phase.axvline(escape, color="black", ls="--", label=f"lazy: |dw| / |w_0| = {ESCAPE:g}")
        phase.legend(fontsize=8, loc="lower left")
    phase.set(xscale="log", yscale="log", xlabel="temperature T = eta/B (blank: not fitted)")
    phase.set_ylabel("output scale alpha")
    for i, (p, row) in enumerate(zip(cfg.samples, records["samples"].values["weight_change"][0])):
        critical.plot(cfg.temperature, mean_of_fitted(row), label=f"P = {p}", **measured_style(i, len(cfg.samples)))
    line = mean_of_fitted(records["samples"].values["weight_change"][0, -1])
    unit = mean_of_fitted(line / np.asarray(cfg.temperature))
    critical.plot(cfg.temperature, unit * np.asarray(cfg.temperature), "k-", lw=1, label="~ T")
    flat = np.nanmin(line) if np.isfinite(line).any() else np.nan
    critical.axhline(flat, label="T has no effect", **rival_style())
    critical.axhline(ESCAPE, color="grey", ls=":")
    critical.set(xscale="log", yscale="log", xlabel="temperature T")
    critical.set_ylabel(f"|dw| / |w_0| at alpha = {cfg.alpha[-1]:g}")
    critical.set_title(f"T_c: where |dw| / |w_0| = {ESCAPE:g}", fontsize=9)
    critical.legend(fontsize=8, loc=(0.6, 0.14))
    for i, (p, row) in enumerate(zip(cfg.samples, records["samples"].values["test_error"][0])):
        errors.plot(cfg.temperature, mean_of_fitted(row), label=f"P = {p}", **measured_style(i, len(cfg.samples)))
    control = mean_of_fitted(records["shuffled"].values["test_error"][0, 0])
    errors.plot(cfg.temperature, control, label=f"shuffled labels, P = {cfg.samples[0]}", **rival_style())
    label = f"least squares, P = {cfg.samples[-1]}"
    errors.axhline(records["linear"].values["test_error"][0], label=label, **rival_style(1))
    errors.set(xscale="log", yscale="log", xlabel="temperature T")
    errors.set_ylabel(f"test error at alpha = {cfg.alpha[-1]:g}")
    errors.legend(fontsize=7, loc=(0.5, 0.58))
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
