"""Which explanation fits which grokking? Every mechanism of the family on one page.

Each row is one mechanism: its delay (test time over train time) against its control parameter, and, for every setting
of that parameter, what the explanations of grokking point to, step by step: how far the tangent kernel has moved, its
alignment with the labels, the weight norm, and the effective rank of the first weights (of the learned part for XOR
clusters, of the second moment M for the lazy-to-rich network). Between fitting and generalising the kernel moves on in
all of them; the weight norm falls for large initial weights alone, and rises in the others. Black lines are theory: for
large initial weights the norm that decays as ``exp(-eta lambda t)``, and the times at which the runs of larger weight
decay generalise, foretold from the run of the smallest. What the kernel does is claimed at the longest delay alone.

Run time: about 115 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import numpy as np

from dynamics import config
from dynamics.config import Positive, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, rival_style, theory_style, ticks_at
from dynamics.statistics import first_step, time_ratio
from dynamics.types import Claim, Record

from . import large_init, lazy_to_rich, modular_addition, modular_gd, xor_clusters
from ._lazy_to_rich import trained
from ._mechanism import READINGS

SOURCE = "Kumar et al. 2023; Gromov 2023; Liu et al. 2022; Xu et al. 2023"
SECONDS = 115


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Range(1, 1)] = 1
    """one seed a setting"""
    alpha: Annotated[tuple[float, ...], Positive] = (0.1, 0.2, 0.4)
    """output scales of the lazy-to-rich network"""
    decay: Annotated[tuple[float, ...], Positive] = (0.5, 1.0, 2.0)
    """weight decays on modular addition"""
    norm_decay: Annotated[tuple[float, ...], Positive] = (0.2, 0.4, 0.8)
    """weight decays of the network of large initial weights"""
    gd_alpha: Annotated[tuple[float, ...], Positive] = (0.75, 1.0)
    """output scales on modular addition by plain gradient descent"""
    separation: Annotated[tuple[float, ...], Positive] = (30.0, 33.0, 36.0)
    """cluster separations |mu| of the XOR clusters"""
    dimension: Annotated[int, Range(2000)] = 40_000
    """input dimension of the XOR clusters"""
    pace: Annotated[float, Range(0.001, 10)] = 1.0
    """factor on every mechanism's number of steps"""


class Mechanism(NamedTuple):
    """One mechanism: its control parameter, and for each value of it a key of ``Result.records``.

    ``fitted`` and ``generalised`` are the levels of ``measure`` that define the two times: accuracies to rise above, or
    (for ``loss``) shares of the initial loss to fall below. ``theory`` names the theory of the delay, if there is one.
    """

    title: str
    control: str
    settings: tuple[float, ...]
    keys: list[str]
    measure: str
    fitted: float
    generalised: float
    theory: str = ""


class Result(NamedTuple):
    """Records of one seed each, values ``[T]``; ``mechanisms`` says which belong together.

    The theory of a run stands under its key followed by ``, theory``: readings of the same names, and the ``delay``.
    """

    config: Config
    records: dict[str, Record]
    mechanisms: list[Mechanism]


def run(config: Config, study=in_memory) -> Result:
    records: dict[str, Record] = {}
    found = []
    for part in (_lazy_to_rich, _modular_addition, _modular_gd, _large_weights, _xor_clusters):
        mechanism, measured = part(config, study)
        found.append(mechanism)
        records |= measured
    return Result(config, records, found)


def _lazy_to_rich(config: Config, study) -> tuple[Mechanism, dict[str, Record]]:
    lazy = lazy_to_rich.Config(seed=config.seed, seeds=1, alpha=config.alpha, fresh=600)
    axes, named = {"alpha": config.alpha, "seed": range(1)}, _labelled(study, "lazy to rich")
    record = trained(lazy, named, "network", axes, _steps(config, 4000), kernel=True)
    records = _by_setting("lazy to rich", "alpha", record)
    return Mechanism("lazy to rich", "output scale alpha", config.alpha, [*records], "loss", 0.1, 0.1), records


def _modular_addition(config: Config, study) -> tuple[Mechanism, dict[str, Record]]:
    sums = modular_addition.Config(seed=config.seed, seeds=1, weight_decay=config.decay, steps=_steps(config, 3000))
    result = modular_addition.run(sums, _labelled(study, "modular addition"))
    records = _by_setting("modular addition", "weight_decay", result.records["square"])
    title = "modular addition, AdamW"
    return Mechanism(title, "weight decay", config.decay, [*records], "accuracy", 0.99, 0.9), records


def _modular_gd(config: Config, study) -> tuple[Mechanism, dict[str, Record]]:
    plain = modular_gd.Config(seed=config.seed, seeds=1, steps=_steps(config, 32_000))
    record = modular_gd.train(plain, _labelled(study, "modular addition by GD"), config.gd_alpha)
    records = _by_setting("modular addition by GD", "alpha", record)
    title = "modular addition, GD"
    return Mechanism(title, "output scale alpha", config.gd_alpha, [*records], "accuracy", 0.95, 0.9), records


def _large_weights(config: Config, study) -> tuple[Mechanism, dict[str, Record]]:
    digits = large_init.Config(seed=config.seed, seeds=1)
    decays = {f"large initial weights, {decay:g}": decay for decay in config.norm_decay}
    settings = {key: large_init.Setting(digits.scale, decay) for key, decay in decays.items()}
    records = large_init.train(digits, study, settings, _steps(config, 6000), "large initial weights")
    records = {key: record.at(seed=0) for key, record in records.items()}
    title, clock = "large initial weights, digits", "weight-norm clock"
    found = Mechanism(title, "weight decay", config.norm_decay, [*decays], "accuracy", 0.99, 0.8, clock)
    smallest = min(decays, key=lambda key: decays[key])
    time = times(found, records[smallest]).test
    theory = {
        f"{key}, theory": norm_clock(digits.learning_rate * decay, found, records[key], time * decays[smallest] / decay)
        for key, decay in decays.items()
    }
    return found, records | theory


def _xor_clusters(config: Config, study) -> tuple[Mechanism, dict[str, Record]]:
    records: dict[str, Record] = {}
    shared: dict[str, Any] = dict(seed=config.seed, seeds=1, width=1000, dimension=config.dimension)
    for separation in config.separation:
        name = f"XOR clusters, {separation:g}"
        clusters = xor_clusters.Config(separation=separation, steps=_steps(config, 100), **shared)
        result = xor_clusters.run(clusters, _labelled(study, name))
        records[name] = result.records["network"].at(seed=0)
    return Mechanism("XOR clusters", "separation |mu|", config.separation, [*records], "accuracy", 0.99, 0.95), records


def _steps(config: Config, count: int) -> int:
    return max(round(count * config.pace), 20)


def _labelled(study, prefix: str):
    return lambda *arguments, label, **options: study(*arguments, label=f"{prefix}, {label}", **options)


def _by_setting(name: str, axis: str, record: Record) -> dict[str, Record]:
    """A record ``[T, settings, seeds]`` taken apart, its first seed."""
    return {f"{name}, {value:g}": record.at(**{axis: value}, seed=0) for value in record.axes[axis]}


class Times(NamedTuple):
    train: float
    test: float


def times(mechanism: Mechanism, record: Record) -> Times:
    """The steps at which the training set is fitted and at which the network generalises; inf if never."""
    found = []
    for part, level in (("train", mechanism.fitted), ("test", mechanism.generalised)):
        curve = np.asarray(record.values[f"{part}_{mechanism.measure}"])
        below = mechanism.measure == "loss"
        found.append(
            float(first_step(record.step, curve, level * curve[0] if below else level, "below" if below else "above"))
        )
    return Times(*found)


def ratio(found: Times) -> float:
    """Test time over train time; a training set fitted from the start counts as fitted at step 1."""
    return float(time_ratio(found.test, max(found.train, 1)))


def with_delay(record: Record, delay: float) -> Record:
    return record._replace(values={**record.values, "delay": np.full(len(record.step), delay)})


def norm_clock(rate: float, mechanism: Mechanism, record: Record, then: float) -> Record:
    """The norm that decays as ``exp(-rate t)``, and the delay of a run that generalises at step ``then``."""
    norm = np.asarray(record.values["norm"])
    falling = Record(record.step, record.time, {"weight_norm": norm[0] * np.exp(-rate * np.asarray(record.step))})
    return with_delay(falling, ratio(Times(times(mechanism, record).train, float(then))))


def change(mechanism: Mechanism, record: Record, name: str) -> float:
    """First reading at or after generalising over the last one at or before fitting (NaN if either never comes)."""
    at, (train, test) = np.asarray(record.values[name]), times(mechanism, record)
    step = np.asarray(record.step)
    if not np.isfinite(train):
        return float("nan")
    before = np.flatnonzero(np.isfinite(at) & (step <= train))
    after = np.flatnonzero(np.isfinite(at) & (step >= test))
    return float(at[after[0]] / at[before[-1]]) if before.size and after.size else float("nan")


@np.errstate(invalid="ignore", divide="ignore")  # what is not reached reads NaN, which holds no claim
def claims(result: Result) -> list[Claim]:
    """One draw each; the settings of a mechanism are cells of it, of which the worst counts."""
    out, source = [], "every paper's own explanation"
    seen = {found.title: [result.records[key] for key in found.keys] for found in result.mechanisms}
    moves = {
        found.title: {
            name: np.array([change(found, record, name) for record in seen[found.title]])
            for name in ("weight_norm", "kernel_distance")
        }
        for found in result.mechanisms
    }
    for found in result.mechanisms:
        records, moved = seen[found.title], moves[found.title]
        reached = np.array([np.isfinite(times(found, record)).all() for record in records])
        ended = [record.values[f"{part}_{found.measure}"][-1] for record in records for part in ("train", "test")]
        if not reached.any() and result.config.pace < 1 and np.isfinite(ended).all():
            note = "no setting generalises within these steps"
            out.append(Claim.not_applicable(f"{found.title}: delay and what moves", source, note))
            continue
        delays = np.array([ratio(times(found, record)) for record in records])
        longest = np.max(delays[reached]) if reached.any() else np.nan
        together = [ratio(times(found, as_train(found, record))) for record in records]
        rivals = {"test follows train": np.max(together)}
        out.append(Claim.at_least(f"{found.title}: longest delay", source, longest, 1.2, rivals=rivals))
        at = int(np.argmax(np.where(reached, delays, -np.inf)))
        name = f"{found.title}: kernel distance when it generalises over when it fits, at the longest delay"
        rivals = {"kernel frozen once it fits": 1.0}
        least = np.min(moved["kernel_distance"])
        note = f"smallest of all settings {least:.3g}; where nothing delays, there is no time to move in"
        out.append(Claim.at_least(name, source, moved["kernel_distance"][at], 1.05, rivals=rivals, note=note))
        if found.theory:
            foretold = np.array(predicted(result, found))
            late = np.argsort(found.settings)[1:]  # the smallest setting foretells the others
            unmoved = foretold[np.argmin(found.settings)]  # its delay, had the decay no effect
            error, none = (np.max(np.abs(other / delays[late] - 1)) for other in (foretold[late], unmoved))
            name = f"{found.title}: {found.theory} against the delay, largest relative error"
            out.append(Claim.at_most(name, source, error, 0.25, rivals={"decay has no effect": none}))
        norm, falls = moved["weight_norm"], [title for title in seen if title.startswith("large")]
        name = f"{found.title}: weight norm when it generalises over when it fits"
        if found.title in falls:
            rivals = {title: np.min(moves[title]["weight_norm"]) for title in seen if title not in falls}
            out.append(Claim.at_most(f"{name}, largest", "Liu et al. 2022", np.max(norm), 0.7, rivals=rivals))
        else:
            rivals = {title: np.max(moves[title]["weight_norm"]) for title in falls}
            out.append(Claim.at_least(f"{name}, smallest", "no decay of the norm", np.min(norm), 1, rivals=rivals))
    return out


def as_train(mechanism: Mechanism, record: Record) -> Record:
    """A run whose test readings are those of training."""
    train = record.values[f"train_{mechanism.measure}"]
    return record._replace(values={**record.values, f"test_{mechanism.measure}": train})


def predicted(result: Result, mechanism: Mechanism) -> list[float]:
    return [float(result.records[f"{key}, theory"].values["delay"][0]) for key in mechanism.keys]


def figure(result: Result) -> Any:
    """One row a mechanism: markers measured, black lines theory; vertical lines: fits (dotted), generalises (solid)."""
    page, panels = new_figure(len(result.mechanisms), 1 + len(READINGS), width=3.0, height=2.3)
    for row, found in zip(panels, result.mechanisms):
        for i, (value, key) in enumerate(zip(found.settings, found.keys)):
            record, style = result.records[key], measured_style(i, len(found.settings))
            train, test = times(found, record)
            row[0].plot([value], [test / max(train, 1)] if np.isfinite(test) else [np.nan], **style)
            for panel, name in zip(row[1:], READINGS):
                if f"{key}, theory" in result.records:
                    curve(panel, result.records[f"{key}, theory"], name, 200, theory_style(i))
                curve(panel, record, name, 20, {"label": f"{found.control} = {value:g}", **style})
                for at, dash in ((train, ":"), (test, "-")):
                    if np.isfinite(at):
                        panel.axvline(max(at, 0.7), color=style["color"], linestyle=dash, linewidth=0.8)
        if found.theory:
            foretold = np.array(predicted(result, found))
            row[0].plot(found.settings, foretold, label=f"theory: {found.theory}", **theory_style())
            still = foretold[np.argmin(found.settings)] + 0 * foretold
            row[0].plot(found.settings, still, label="decay has no effect", **rival_style())
            row[0].legend(fontsize=7, frameon=False)
        row[0].set(xscale="log", xlabel=found.control, ylabel="test time / train time", title=found.title)
        ticks_at(row[0].xaxis, found.settings)
        for panel, name in zip(row[1:], READINGS):
            panel.set(xscale="log", xlabel="step", ylabel=name.replace("_", " "))
        row[1].legend(fontsize=7, frameon=False)
    page.suptitle("Grokking: delay and what moves; dotted line: training set fitted, solid line: generalises")
    return page


def curve(panel, record: Record, name: str, most: int, style: dict[str, Any]) -> None:
    """At most about ``most`` of the steps at which ``name`` was read, step 0 drawn at 0.7."""
    reading = np.asarray(record.values.get(name, np.nan * np.asarray(record.step)))
    read = np.flatnonzero(np.isfinite(reading))
    read = read[:: max(1, read.size // most)]
    panel.plot(np.maximum(np.asarray(record.step)[read], 0.7), reading[read], **style)


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
