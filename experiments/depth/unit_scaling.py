"""Which parametrisation's learning rate serves at every width: standard, muP, u-muP (Blake et al. 2024).

A layer ``h = m W x`` has a start of W, a multiplier m and an Adam rate, each a power of the width n. By the first step,
which is the gradient's sign, its output changes as a power of n that follows from these (``theory.coordinates``):

    standard   0, 1, 1, 3/2    (rate 1 everywhere; input, hidden, hidden, output)
    muP        0, 0, 0, 0      (hidden rate 1/n; output 1/n in front)
    u-muP   -1/2, 0, 0, 0      (weights of size 1; n^-1/2 in front, rate n^-1/2; input rate n^-1/2; output 1/n in front)

With all zero the best rate does not move with width. The large preset trains a small language model on characters of
Python's own documentation to see it. Gradients of size one, which u-muP also has by scaled backward passes, and FP8 are
not run.

Run time: about 40 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
import functools
from pydoc_data.topics import topics
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import config, observe
from dynamics.config import Count, NonNegative
from dynamics.evolve import descent
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import measured_style, new_figure, theory_style, ticks_at
from dynamics.theory.coordinates import scheme_exponents
from dynamics.tools import coordinate_check
from dynamics.types import Batch, Claim, Data, Model, Objective, Observable, Record

SOURCE = "Blake, Eichenberg, Dean, Balles, Prince, Deiseroth, Cruz-Salinas, Luschi, Weinbach & Orr 2024, 'u-muP'"
SECONDS = 40
INPUTS, SAMPLES, BASE, TOKENS, LENGTH, HEAD = 16, 32, 64, 64, 16, 16
LAYERS = ("input", "hidden", "hidden", "output")
RATES = {"standard": -12.0, "muP": -8.0, "u-muP": -6.0}  # log2, of the check
CENTRES = {"standard": -8.0, "muP": -8.0, "u-muP": -1.0}  # log2, of the language model


def rules(scheme: str, role: str, fan_in: int, width: int) -> tuple[float, float, float]:
    """``(start, multiplier, rate)`` of a layer; inputs are lookups, of one term; muP is standard at width ``BASE``."""
    start = 1.0 if role == "input" else fan_in**-0.5
    if scheme == "standard":
        return start, 1.0, 1.0
    if scheme == "muP":
        table = {"input": (1.0, 1.0, 1.0), "hidden": (start, 1.0, BASE / width)}
        return table.get(role, (BASE**-0.5, BASE / width, 1.0))
    table = {"input": (1.0, 1.0, width**-0.5), "hidden": (1.0, start, start)}
    return table.get(role, (1.0, 1.0 / fan_in, 1.0))


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 8
    """initialisations"""
    width: Annotated[tuple[int, ...], Count] = (64, 128, 256, 512, 1024)
    """widths of the coordinate check, ascending"""
    updates: Annotated[int, NonNegative] = 0
    """updates of the language model; 0 leaves it out"""
    model_width: Annotated[tuple[int, ...], Count] = (32, 64, 128, 256)
    """widths of the language model, multiples of 16, ascending"""
    offset: tuple[float, ...] = (-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
    """log2 of its learning rates, around each scheme's own"""
    model_seeds: Annotated[int, Count] = 4
    """its initialisations and streams of text"""
    sequences: Annotated[int, Count] = 8
    """sequences of 16 characters an update"""

    @classmethod
    def large(cls) -> Config:
        """With the language model. A quarter of an hour of a core, 8 GB."""
        return cls(updates=300)

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("width", "model_width", "offset"):
            self.require(bool(np.all(np.diff(getattr(self, field)) > 0)), field, "ascending values")
        self.require(all(n % HEAD == 0 for n in self.model_width), "model_width", f"multiples of {HEAD}")


class Result(NamedTuple):
    """``records['check']``: ``activation, change [1, scheme, layer, seed, width]``; ``['transfer']``: ``test_loss [1,
    scheme, width, offset, seed]``, where the language model is trained."""

    config: Config
    records: dict[str, Record]


def run(config: Config, study=in_memory) -> Result:
    """The coordinate check of each scheme, and the language model at every rate."""
    key, drawn = jax.random.key(config.seed), Observable.of_view(lambda view: view.params)
    kx, ky, kc = jax.random.split(key, 3)
    batch = Batch(jax.random.normal(kx, (SAMPLES, INPUTS)), jax.random.normal(ky, (SAMPLES, 1)))

    def check(lane):
        made = functools.partial(perceptron, lane.scheme)
        some = sorted({*config.width, *((8, 12, 16) if len(config.width) < 3 else ())})  # three, for its fit
        found, kept = coordinate_check(made, some, batch, seeds=config.seeds, key=kc), np.isin(some, config.width)
        return {name: found.sizes[name][0][..., kept] for name in ("activation", "change")}

    records = {
        "check": study({"scheme": list(RATES)}, check, None, [drawn], steps=0, data=(), key=key, label="coordinates")
    }
    if config.updates:
        records["transfer"] = transfer(config, study, key)
    return Result(config, records)


def perceptron(scheme: str, width: int):
    """Three hidden layers of ``sqrt2 relu``, and Adam with a rate a layer."""
    sizes = [INPUTS, width, width, width, 1]
    rule = [rules(scheme, role, fan_in, width) for role, fan_in in zip(LAYERS, sizes)]
    scaled = (1.0, INPUTS**-0.5) if scheme == "u-muP" else (INPUTS**-0.5, 1.0)  # a sum of several terms, no lookup
    rule[0] = (*scaled, rule[0][2])

    def init(key, shape):
        keys = jax.random.split(key, len(LAYERS))
        normal = [jax.random.normal(k, (a, b)) * r[0] for k, a, b, r in zip(keys, sizes, sizes[1:], rule)]
        return (shape[0], 1), {f"layer {i + 1}": {"w": w} for i, w in enumerate(normal)}

    def apply(params, x):
        for i, (_, multiplier, _) in enumerate(rule):
            x = multiplier * (x @ params[f"layer {i + 1}"]["w"])
            x = 2**0.5 * jax.nn.relu(x) if i < len(LAYERS) - 1 else x
        return x

    rates = {f"layer {i + 1}": {"w": r[2]} for i, r in enumerate(rule)}
    return Model(init, apply), adam(2.0 ** RATES[scheme], rates)


def adam(rate, rates) -> optax.GradientTransformation:
    """Adam at ``rate`` times a factor a leaf."""

    def update(updates, state, params=None):
        return jax.tree.map(lambda u, r: -rate * r * u, updates, rates), state

    return optax.chain(optax.scale_by_adam(), optax.GradientTransformation(lambda params: (), update))


SHAPES = {
    "embed": ("input", lambda n: (TOKENS, n)),
    **{name: ("hidden", lambda n: (n, n)) for name in ("query", "key", "value", "mix")},
    "up": ("hidden", lambda n: (n, 4 * n)),
    "down": ("hidden", lambda n: (4 * n, n)),
    "unembed": ("output", lambda n: (n, TOKENS)),
}


def language_model(scheme: str, n: int):
    """``(start, apply, rates)`` of one block of attention and of a perceptron behind layer norms; heads of 16."""
    rule = {name: rules(scheme, role, shape(n)[0], n) for name, (role, shape) in SHAPES.items()}

    def start(key):
        keys = jax.random.split(key, len(SHAPES))
        return {
            name: rule[name][0] * jax.random.normal(k, shape(n)) for k, (name, (_, shape)) in zip(keys, SHAPES.items())
        }

    def norm(x):
        x = x - jnp.mean(x, -1, keepdims=True)
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)

    def apply(params, tokens):
        def linear(name, x):
            return rule[name][1] * (x @ params[name])

        place = jnp.sin(jnp.arange(LENGTH)[:, None] / 100 ** (jnp.arange(n) / n))
        x = rule["embed"][1] * params["embed"][tokens] + place
        h = norm(x)
        heads = [linear(name, h).reshape(*h.shape[:2], -1, HEAD) for name in ("query", "key", "value")]
        x = x + linear("mix", jax.nn.dot_product_attention(*heads, is_causal=True).reshape(h.shape))
        x = x + linear("down", jax.nn.gelu(linear("up", norm(x))))
        return linear("unembed", norm(x))

    return start, apply, {name: one[2] for name, one in rule.items()}


def text() -> np.ndarray:
    """Python's documentation of its language as numbers of its most frequent characters, the last for all others."""
    whole = np.frombuffer(" ".join(topics[name] for name in sorted(topics)).encode("ascii", "replace"), np.uint8)
    frequent = np.argsort(-np.bincount(whole, minlength=256), kind="stable")
    return np.minimum(np.argsort(frequent)[whole], TOKENS - 1)


def transfer(config: Config, study, key) -> Record:
    """The loss on held-out text after training, at each width, rate and seed."""
    held = text()
    rows = held[: len(held) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
    rows = jnp.asarray(rows[np.random.default_rng(0).permutation(len(rows))])
    data = Data(*(Batch(some[:, :-1], some[:, 1:]) for some in (rows[512:], rows[:512])))

    def next_token(f, y):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(f, y))

    def make(lane):
        _, apply, rates = language_model(lane.scheme, lane.model_width)
        optimizer = adam(2.0 ** (CENTRES[lane.scheme] + lane.offset), rates)
        return descent(Objective(apply, next_token), optimizer, batch_size=config.sequences)

    def draw(lane):
        start, _, _ = language_model(lane.scheme, lane.model_width)
        return start(jax.random.fold_in(key, lane.seed))

    axes = {
        "scheme": list(RATES), "model_width": config.model_width, "offset": config.offset,
        "seed": range(config.model_seeds),
    }  # fmt: skip
    return study(axes, draw, make, [], test=[observe.loss()], steps=config.updates, record_at=[config.updates],
                 key=key, data=data, loop=("model_width",), label="transfer",
                 stream=lambda index: index["seed"])  # fmt: skip


def exponents(result: Result) -> dict[str, dict[str, np.ndarray]]:
    """``{scheme: {activation, change: [seed, layer]}}``: slopes of each seed."""
    values, widths = result.records["check"].values, np.log(result.config.width)
    out = {}
    for i, scheme in enumerate(RATES):
        out[scheme] = {
            name: np.stack([np.polyfit(widths, np.log(layer.T), 1)[0] for layer in values[name][0, i]], -1)
            for name in ("activation", "change")
        }
    return out


def predicted(scheme: str) -> np.ndarray:
    """Exponents of the changes."""
    table = scheme_exponents(scheme, "adaptive", [(0, 1), (1, 1), (1, 1), (1, 0)], [(), (0,), (1,), (2,)])
    return np.array([one.change for one in table])


def claims(result: Result) -> list[Claim]:
    """Of each scheme, with the others' exponents as rivals; of the language model where it was trained."""
    cfg, out = result.config, []
    titles = {scheme: f"{scheme}: exponents of changes from theory, largest distance over layers" for scheme in RATES}
    if len(cfg.width) < 3 or cfg.seeds < 3 or cfg.width[-1] < 8 * cfg.width[0]:
        return [
            Claim.not_applicable(t, "table 2", "needs three widths over a factor 8, 3 seeds") for t in titles.values()
        ]
    found = exponents(result)
    for scheme, title in titles.items():
        mean = found[scheme]["change"].mean(0)
        apart = {other: float(np.max(np.abs(mean - predicted(other)))) for other in RATES}
        rivals = {f"as {other}": value for other, value in apart.items() if other != scheme}
        shown = ", ".join(f"{one:.2f}" for one in mean)
        out.append(Claim.at_most(title, "table 2", apart[scheme], 0.15, rivals=rivals, note=shown))
    last = {scheme: result.records["check"].values["activation"][0, i, :, :, -1] for i, scheme in enumerate(RATES)}
    size = last["u-muP"][:3].mean(0)  # [seed]
    plain = size * np.mean(2 ** (-0.5 * np.arange(3)))
    out.append(Claim.close("u-muP: size of hidden activations at the start", "section 3", size, 1.0, 0.05,
                           rivals={"relu without its factor sqrt 2": plain}))  # fmt: skip
    slope = found["u-muP"]["activation"][:, -1]
    rivals = {"as standard": found["standard"]["activation"][:, -1]}
    out.append(Claim.close("u-muP: exponent of the output at the start", "table 2", slope, -0.5, 0.15, rivals=rivals))
    return out + transfer_claims(result)


def best(result: Result) -> np.ndarray:
    """Log2 of the best rate ``[scheme, width, seed]``: the vertex of the parabola through the least loss and its
    neighbours; NaN where that is at an end of the rates."""
    loss = np.asarray(result.records["transfer"].values["test_loss"][0])  # [scheme, width, offset, seed]
    loss, offset = np.where(np.isfinite(loss), loss, np.inf), np.asarray(result.config.offset)
    found = np.full(loss.shape[:2] + loss.shape[3:], np.nan)
    for place in np.ndindex(*found.shape):
        row = loss[place[0], place[1], :, place[2]]
        at = int(np.argmin(row))
        if 0 < at < len(row) - 1 and np.all(np.isfinite(row[at - 1 : at + 2])):
            a, b, _ = np.polyfit(offset[at - 1 : at + 2], row[at - 1 : at + 2], 2)
            found[place] = -b / (2 * a)
    return found + np.array(list(CENTRES.values()))[:, None, None]


def transfer_claims(result: Result) -> list[Claim]:
    """How the best rate moves by a doubling of the width, seed by seed."""
    cfg = result.config
    titles = [f"{scheme}: doublings of the best rate by a doubling of the width" for scheme in RATES]
    if "transfer" not in result.records:
        return [Claim.not_applicable(title, "figure 1", "needs updates, as in the large preset") for title in titles]
    if len(cfg.model_width) < 3 or cfg.model_seeds < 3 or len(cfg.offset) < 5 or cfg.updates < 100:
        return [
            Claim.not_applicable(title, "figure 1", "needs 3 widths, 3 seeds, 5 rates, 100 updates") for title in titles
        ]
    slopes = np.polyfit(np.log2(cfg.model_width), best(result).transpose(1, 0, 2).reshape(len(cfg.model_width), -1), 1)[
        0
    ]
    standard, mup, umup = slopes.reshape(3, -1)
    return [
        Claim.at_most(titles[0], "figure 1", standard, -0.25, rivals={"as muP": mup}),
        Claim.close(titles[1], "figure 1", mup, 0.0, 0.25, rivals={"as standard": standard}),
        Claim.close(titles[2], "figure 1", umup, 0.0, 0.25, rivals={"as standard": standard}),
    ]


def figure(result: Result):
    """Changes against width with the slopes predicted, a scheme a panel; loss against rate where that was run."""
    cfg, values, widths = result.config, result.records["check"].values["change"][0], np.asarray(result.config.width)
    rows = 2 if "transfer" in result.records else 1
    fig, axes = new_figure(rows, 3, width=4.0, height=3.2, sharey="row")
    axes = np.asarray(axes).reshape(rows, 3)
    for i, (ax, scheme) in enumerate(zip(axes[0], RATES)):
        for layer, rms in enumerate(values[i]):  # [seed, width]
            mean, style = np.exp(np.log(rms).mean(0)), measured_style(layer, len(LAYERS))
            start = mean[0]
            ax.plot(widths, mean / start, ms=6, label=f"layer {layer + 1}, {LAYERS[layer]}", **style)
            ax.plot(widths, (widths / widths[0]) ** predicted(scheme)[layer], lw=0.9, **theory_style())
        ax.set(xscale="log", yscale="log", xlabel="width n", title=f"{scheme}; lines: theory")
        ticks_at(ax.xaxis, widths)
    axes[0, 0].set_ylabel("change of a layer by a step, over that of the least width")
    axes[0, 0].legend(fontsize=7)
    if rows == 2:
        loss = np.asarray(result.records["transfer"].values["test_loss"][0])
        for i, (ax, scheme) in enumerate(zip(axes[1], RATES)):
            for j, n in enumerate(cfg.model_width):
                style = measured_style(j, len(cfg.model_width)) | {"linestyle": "-", "lw": 0.8}
                rate = CENTRES[scheme] + np.asarray(cfg.offset)
                shown = np.where(loss[i, j] < 4.5, loss[i, j], np.nan)
                known = np.isfinite(shown).all(-1)
                ax.plot(rate[known], shown[known].mean(-1), label=f"n = {n}", **style)
            ax.set(xlabel="log2 of the learning rate")
        axes[1, 0].set_ylabel("loss on held-out text, nats a character")
        axes[1, 0].legend(fontsize=7)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
