"""Where memorising ends, on groups of several sizes (Tian 2025, theorem 4): found by bisection, and its law."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.models.two_layer import two_layer
from dynamics.runs.figures import measured_style, rival_style, theory_style, ticks_at
from dynamics.tasks.modular import operation_table
from dynamics.theory.modular import generalisation_fraction
from dynamics.types import Batch, Claim, Data, Dynamics, Objective, Record

ROUNDS = 5
LAWS = {
    "log(M)/M": lambda m: np.log(m) / m,
    "M^(-2/3)": lambda m: m ** (-2 / 3),
    "1/M": lambda m: 1 / m,
    "constant": lambda m: m**0.0,
}


def name_of(m: int, optimizer: str) -> str:
    return f"boundary, M = {m}, {optimizer}"


def cases(config: Any) -> list[tuple[int, str]]:
    """Sizes and optimisers: Adam at all sizes, Muon at the smallest; none without seeds."""
    first, *more = config.law_sizes
    return [(first, "adam"), (first, "muon"), *((m, "adam") for m in more)] if config.law_seeds else []


def bisect(config: Any, m: int, optimizer: str, descend: Callable[[Objective, str], Dynamics], study) -> Record:
    """``c [rounds, seeds]`` at which networks on addition modulo m were trained, and their accuracies at the end.

    Every seed has its own split and weights and looks for its own boundary: where the test accuracy is above 1/2, the
    next c is lower. Its training sets are nested. Rows beyond them have no target and weigh nothing.
    """
    key, table = jax.random.fold_in(jax.random.key(config.seed), m), operation_table("add", m)
    model, cells = two_layer(config.law_width, m, jnp.square), np.indices((m, m)).reshape(2, -1).T
    steps = config.law_steps * m // min(config.law_sizes)
    low, high = (np.full(config.law_seeds, end) for end in config.law_bracket)
    rows: dict[str, list[np.ndarray]] = {"c": [], "train_accuracy": [], "test_accuracy": []}

    def apply(params, x):
        first = params.first.T
        f = jnp.square(first[x[:, 0]] + first[m + x[:, 1]]) @ params.second.T
        return f - jnp.mean(f, axis=1, keepdims=True)

    def loss(f, y):
        known = jnp.sum(y, axis=1)
        return jnp.sum(known[:, None] * (f - y + 1 / m) ** 2) / (2 * jnp.sum(known))

    def right(params, batch):
        known, f = jnp.sum(batch.y, axis=1), apply(params, batch.x)
        return jnp.sum(known * (jnp.argmax(f, 1) == jnp.argmax(batch.y, 1))) / jnp.sum(known)

    for turn in range(ROUNDS):
        middle = (low + high) / 2
        count = np.array([round(generalisation_fraction(m, c) * m**2) for c in middle])

        def draw(lane, count=count):
            split_key, weight_key = jax.random.split(jax.random.fold_in(key, lane.seed))
            order, own = np.asarray(jax.random.permutation(split_key, m * m)), count[lane.seed]

            def rows_of(at, known):
                y = np.eye(m)[table.ravel()[at]] * known[:, None]
                return Batch(jnp.asarray(cells[at]), jnp.asarray(y, jnp.float32))

            seen, most, least = np.arange(m * m) < own, count.max(), count.min()
            data = Data(rows_of(order[:most], seen[:most]), rows_of(order[least:], ~seen[least:]))
            return data, model.init(weight_key, (-1, 2 * m))[1]

        record = study(
            {"seed": range(config.law_seeds)}, draw, lambda lane: descend(Objective(apply, loss), optimizer),
            [lambda params, batch: {"train_accuracy": right(params, batch)}],
            test=[lambda params, batch: {"accuracy": right(params, batch)}],
            steps=steps, record_at=[steps], key=key, label=f"{name_of(m, optimizer)}, {turn + 1}",
        )  # fmt: skip
        found = {part: np.asarray(record.values[f"{part}_accuracy"])[-1] for part in ("train", "test")}
        for name, row in (("c", middle), *((f"{part}_accuracy", row) for part, row in found.items())):
            rows[name].append(row)
        above = found["test"] > 0.5
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    step = np.arange(1, ROUNDS + 1)
    return Record(step, step * 1.0, {k: np.stack(v) for k, v in rows.items()}, {"seed": list(range(config.law_seeds))})


def crossing(record: Record) -> np.ndarray:
    """``c [seeds]`` of the boundary; NaN where a network diverged or did not fit, or all were on one side of it."""
    c, above = np.asarray(record.values["c"]), np.asarray(record.values["test_accuracy"]) > 0.5
    fitted = np.asarray(record.values["train_accuracy"]) > 0.99
    found = (np.where(above, -np.inf, c).max(0) + np.where(above, c, np.inf).min(0)) / 2
    return np.where(np.isfinite(found) & fitted.all(0), found, np.nan)


def resolution(config: Any) -> float:
    """Standard deviation of a boundary that is known to lie between the last two c."""
    low, high = config.law_bracket
    return (high - low) / 2**ROUNDS / 12**0.5


def fractions(config: Any, records: dict[str, Record]) -> tuple[np.ndarray, np.ndarray]:
    """Boundaries ``ln p [sizes]`` by Adam, and their standard errors: of pooled seeds, and the bisection's own."""
    m = np.array(config.law_sizes, float)
    c = np.stack([crossing(records[name_of(size, "adam")]) for size in config.law_sizes])
    logs = np.log(c * (np.log(m) / m)[:, None])
    pooled = np.mean(np.var(logs, axis=1, ddof=1)) / logs.shape[1]
    return logs.mean(1), np.sqrt(pooled + (resolution(config) / c.mean(1)) ** 2)


def deviations(config: Any, logs: np.ndarray, error: np.ndarray, law: str) -> np.ndarray:
    """From ``law`` with its own factor, fitted, in standard errors; ``[sizes]``."""
    off = logs - np.log(LAWS[law](np.array(config.law_sizes, float)))
    return (off - np.average(off, weights=error**-2)) / error


def law(config: Any, records: dict[str, Record]) -> Iterator[Claim]:
    """The law over the sizes by Adam, and that it knows no optimiser: Muon at the smallest size."""
    sizes = config.law_sizes
    names = (
        "boundary p(M) = c log(M)/M, c fitted: largest deviation, s.e.",
        f"M = {sizes[0]}: boundary by Muon over Adam's",
    )
    if config.law_seeds < 3 or len(sizes) < 3:
        for name in names:
            yield Claim.not_applicable(name, "theorem 4", "needs three sizes and law_seeds >= 3: preset bisect")
        return
    logs, error = fractions(config, records)
    z = {law: deviations(config, logs, error, law) for law in LAWS}
    found = ", ".join(f"{m}: {np.exp(p) * m / np.log(m):.3g}" for m, p in zip(sizes, logs))
    squares = ", ".join(f"{law} {np.sum(one**2):.3g}" for law, one in z.items())
    power = np.polyfit(np.log(sizes), logs, 1)[0]
    note = f"c by size {found}; chi-square {squares}; p ~ M^{power:.3g}"
    yield Claim.cells(names[0], "theorem 4", z.pop("log(M)/M"), rivals=z, note=note)
    muon, adam, larger = (
        crossing(records[name_of(m, optimizer)]) * np.log(m) / m
        for m, optimizer in ((sizes[0], "muon"), (sizes[0], "adam"), (sizes[1], "adam"))
    )
    rivals = {f"Adam's at M = {sizes[1]}": larger / adam}
    yield Claim.close(names[1], "theorem 4", muon / adam, 1.0, 0.1, rivals=rivals)


def draw_law(panels, config: Any, records: dict[str, Record]) -> None:
    """Boundaries over the fitted law, the others beside them; and the accuracies that they come from."""
    sizes = np.array(config.law_sizes, float)
    logs, error = fractions(config, records)
    off = {law: deviations(config, logs, error, law) * error for law in LAWS}
    panels[0].errorbar(sizes, np.exp(off["log(M)/M"]), error, label="adam", **measured_style(0))
    panels[0].axhline(1, label="c log(M)/M, c fitted", **theory_style())
    for i, law in enumerate(("M^(-2/3)", "1/M")):
        panels[0].plot(sizes, np.exp(off["log(M)/M"] - off[law]), label=law, **rival_style(i))
    panels[0].set(xscale="log", xlabel="group size M", ylabel="boundary over the fitted log(M)/M")
    ticks_at(panels[0].xaxis, config.law_sizes)
    runs = [records[name_of(m, optimizer)].values for m, optimizer in cases(config)]
    for i, ((m, optimizer), run) in enumerate(zip(cases(config), runs)):
        c, accuracy = (np.asarray(run[name]).ravel() for name in ("c", "test_accuracy"))
        panels[1].plot(c, accuracy, label=f"{optimizer}, M = {m}", **measured_style(i, len(runs)))
    panels[1].set(xlabel="train fraction in units of log(M)/M", ylabel="final test accuracy")
