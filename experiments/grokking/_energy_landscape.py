"""The energy that single neurons climb before they see one another (Tian 2025): its ascents and their claims."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.evolve import log_steps
from dynamics.statistics import component_power, component_share, irreducible_components
from dynamics.tasks.modular import operation_table
from dynamics.theory.modular import feature_energy
from dynamics.types import Claim, Dynamics, Record

LETTERS = 4  # permuted, of the group that is not cyclic
RANDOM = "ascent, answers at random"


def ascents(config: Any, study) -> dict[str, Record]:
    """On addition modulo M, on permutations, and on a table with the answers of addition at random (a control)."""
    m = config.modulus
    cyclic, permutations = operation_table("add", m), operation_table("permute", LETTERS)
    random = np.random.default_rng(config.seed).permutation(cyclic.ravel()).reshape(m, m)
    return {
        "ascent": climb(config, cyclic, study),
        "ascent, permutations": climb(config, permutations, study, "ascent, permutations"),
        RANDOM: climb(config, random, study, RANDOM, 1 + config.starts // 4),
    }


def climb(config: Any, table: np.ndarray, study, label: str = "ascent", count: int | None = None) -> Record:
    """Gradient ascent of every start on the unit sphere, on the whole table; ``count`` starts."""
    m, key = len(table), jax.random.key(config.seed)
    chosen = config.starts if count is None else count
    starts = np.asarray(jax.random.normal(key, (chosen, 2 * m)))
    is_group = label != RANDOM
    components = irreducible_components(table if is_group else operation_table("add", m))

    def step(key, w, table):
        return normalised(w + 2.0 / m * jax.grad(energy)(w, table))

    def read(w, table):
        u = w[:m]
        feature = 1 + jnp.argmax(component_power(u, components), axis=-1)
        return {"energy": energy(w, table), "share": component_share(u, components), "feature": feature}

    return study(
        {"start": range(chosen)},
        lambda lane: starts[lane.start], lambda lane: Dynamics(normalised, step, lambda w: w), [read],
        steps=config.ascent_steps, record_at=log_steps(config.ascent_steps, 40), key=key,
        data=jnp.asarray(table), label=label,
    )  # fmt: skip


def normalised(w):
    return w / jnp.linalg.norm(w, axis=-1, keepdims=True)


def energy(w, table):
    """``E(w) = 1/2 |Y~^T (X w)^2|^2`` for ``w [..., 2M]``; ``[...]``."""
    m = table.shape[0]
    h = (w[..., :m, None] + w[..., None, m:]) ** 2  # [..., M, M]
    sums = jnp.zeros((*h.shape[:-2], m)).at[..., table].add(h)  # over the cells with one answer
    return 0.5 * jnp.sum((sums - jnp.mean(sums, axis=-1, keepdims=True)) ** 2, axis=-1)


def maxima(m: int, cyclic: bool) -> np.ndarray:
    """The theory's energy of every feature, in the order of the reading ``feature``."""
    if cyclic:
        return np.full((m - 1) // 2, feature_energy(m, real=False))
    sizes = irreducible_components(operation_table("permute", LETTERS)).sizes[1:]
    return np.array([feature_energy(m, round(size**0.5)) for size in sizes.tolist()])


def landscape(config: Any, records: dict[str, Record]) -> Iterator[Claim]:
    for name, m in (("ascent", config.modulus), ("ascent, permutations", math.factorial(LETTERS))):
        cyclic, theorem = name == "ascent", "theorem 2"
        theory = maxima(m, cyclic)
        where = f"addition modulo {m}" if cyclic else f"permutations of {LETTERS}"
        ends = {"end": (records[name], -1), "random starts": (records[name], 0)}
        if cyclic:
            ends["answers at random"] = (records[RANDOM], -1)
        share, off, found = {}, {}, {}
        for key, (record, at) in ends.items():
            energy, one, feature = (np.asarray(record.values[k])[at] for k in ("energy", "share", "feature"))
            own = theory[feature.astype(int) - 1]
            share[key], off[key] = one.min(), np.abs(energy / own - 1).max()
            found[key] = len(set(feature[(one > 0.999) & (np.abs(energy / own - 1) < 1e-3)].tolist()))
            if key == "end":
                other = ("half the energy", own / 2) if cyclic else ("blind to the dimension", theory.max())
                off[other[0]] = np.abs(energy / other[1] - 1).max()
        yield Claim.at_least(f"{where}: share of one feature at the maxima, lowest start", theorem, share.pop("end"),
                             0.999, rivals=share)  # fmt: skip
        yield Claim.at_most(f"{where}: energy at the maxima against theory, largest relative error", theorem,
                            off.pop("end"), 1e-3, rivals=off)  # fmt: skip
        yield Claim.close(f"{where}: features with such a maximum", theorem, found.pop("end"), len(theory), 0,
                          rivals=found)  # fmt: skip
