"""Features of random networks on the sphere: how fast the NNGP's eigenvalues decay, by activation and depth.

On the sphere of R^n the kernel of random features has eigenvalues ``mu_k`` on the harmonics of degree k. ReLU has
``mu_k ~ k^-(n+2)`` at any depth: with one hidden layer on even degrees only (and k = 1), with two on all. The sign has
``k^-(n-1+s)``, ``s = 2^(1-L)`` after L layers, on odd degrees. The paper's networks of random features beat Barron's
bound where the decay is slower than ``k^-(n+2/3)``: so for the sign, not for ReLU. Drawn networks on the circle have
this spectrum; their gradients have another.

Run time: about 40 s for the quick preset on two CPU cores.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics import config, stax
from dynamics.config import Count, Range
from dynamics.evolve import study as in_memory
from dynamics.runs.figures import colour, measured_style, new_figure, rival_style
from dynamics.types import Claim, Record

from ._draws import drawn, mean, mean_z, merged

SOURCE = "Takhanov 2024, 'Multi-layer random features and the approximation power of neural networks'"
SECONDS = 40


@dataclasses.dataclass(frozen=True)
class Config(config.Config):
    seeds: Annotated[int, Count] = 8
    """independent blocks of networks"""
    nets: Annotated[int, Count] = 500
    """networks of a block"""
    width: Annotated[int, Range(8)] = 64
    """width of the networks' hidden layers"""
    dimension: Annotated[tuple[int, ...], Range(2)] = (2, 3, 4)
    """dimensions n of the inputs"""
    degrees: Annotated[int, Range(12)] = 60
    """largest degree k"""
    shown: Annotated[int, Range(4, 30)] = 10
    """largest degree of the drawn networks"""

    @classmethod
    def large(cls) -> Config:
        """More networks, wider; a minute and a half of a core."""
        return cls(seeds=32, width=256, dimension=(2, 3, 4, 6))


class Result(NamedTuple):
    """``records``: spectra, ``mu [1, feature, dimension, degree]``; networks, ``power [1, hidden, seed, nets, degree]``
    on the circle; networks theory, ``power, tangent [1, hidden, degree]``."""

    config: Config
    records: dict[str, Record]


FEATURES = {
    "ReLU, 1 layer": (stax.Relu(), 1, "nngp"),
    "ReLU, 2 layers": (stax.Relu(), 2, "nngp"),
    "sign, 1 layer": (stax.Sign(), 1, "nngp"),
    "sign, 2 layers": (stax.Sign(), 2, "nngp"),
    "ReLU tangents, 1 layer": (stax.Relu(), 1, "ntk"),
}
POINTS = 64


def network(activation, hidden: int, width: int = 1) -> Any:
    layer = stax.serial(stax.Dense(width, 2**0.5), activation)
    return stax.serial(*[layer] * hidden, stax.Dense(1))


def run(config: Config, study=in_memory) -> Result:
    """Spectra by quadrature in double precision; the powers of drawn networks on the circle."""
    key, records = jax.random.key(config.seed), {}
    with jax.enable_x64(True):
        mu = [[spectrum(*FEATURES[name], n, config.degrees) for n in config.dimension] for name in FEATURES]
        circle = [[on_circle(hidden, of, config.shown) for hidden in (1, 2)] for of in ("nngp", "ntk")]
    once = np.zeros(1, int)
    axes = {"feature": tuple(FEATURES), "dimension": config.dimension}
    records["spectra"] = Record(once, once, {"mu": np.array(mu)[None]}, axes)

    def draw(lane):
        stream = jax.random.fold_in(jax.random.fold_in(key, lane.seed), lane.hidden)
        return {"power": powers(stream, lane.hidden, config)}

    records["networks"] = drawn(study, {"hidden": (1, 2), "seed": range(config.seeds)}, draw, "networks")
    values = {"power": np.array(circle[0])[None], "tangent": np.array(circle[1])[None]}
    records["networks theory"] = Record(once, once, values, {"hidden": (1, 2)})
    return Result(config, records)


def spectrum(activation, hidden: int, of: str, n: int, degrees: int) -> np.ndarray:
    """``mu_k`` over ``K(1)``, k = 0, ..., by Gauss-Legendre in the angle, in which arc-cosine kernels are analytic.

    ``mu_k = int K(cos a) C_k(cos a) / C_k(1) sin^(n-2) a da / int sin^(n-2) a da``, Gegenbauer (n = 2: Chebyshev).
    """
    from scipy.special import eval_gegenbauer

    nodes, weights = np.polynomial.legendre.leggauss(600)
    angle, weights = np.pi / 2 * (nodes + 1), np.pi / 2 * weights
    points = np.zeros((len(angle), n))
    points[:, 0], points[:, 1] = np.cos(angle), np.sin(angle)
    pole = np.eye(n)[:1]
    kernel = network(activation, hidden).kernel
    K = np.asarray(kernel(jnp.asarray(pole), jnp.asarray(points), of))[0]
    K = K / float(np.asarray(kernel(jnp.asarray(pole), None, of)).item())
    measure = weights * np.sin(angle) ** (n - 2)
    k = np.arange(degrees + 1)[:, None]
    if n == 2:
        basis = np.cos(k * angle)
    else:
        basis = eval_gegenbauer(k, n / 2 - 1, np.cos(angle)) / eval_gegenbauer(k, n / 2 - 1, 1.0)
    return basis @ (measure * K) / measure.sum()


def on_circle(hidden: int, of: str, shown: int) -> np.ndarray:
    """``E |f_k|^2`` of f at ``POINTS`` points of the circle, exactly (degrees that alias included)."""
    angle = 2 * np.pi * np.arange(POINTS) / POINTS
    x = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], -1))
    row = np.asarray(network(stax.Relu(), hidden).kernel(x[:1], x, of))[0]
    return np.fft.fft(row).real[: shown + 1] / POINTS


@partial(jax.jit, static_argnames=("hidden", "config"))
def powers(key, hidden: int, config: Config):
    """``|f_k|^2 [nets, shown + 1]`` of networks on the circle."""
    angle = 2 * jnp.pi * jnp.arange(POINTS) / POINTS
    x, model = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1), network(stax.Relu(), hidden, config.width)

    def one(key):
        f = model.apply(model.init(key, x.shape)[1], x)[:, 0]
        return jnp.abs(jnp.fft.fft(f)[: config.shown + 1] / POINTS) ** 2

    return jax.lax.map(one, jax.random.split(key, config.nets), batch_size=50)


def slopes(result: Result) -> np.ndarray:
    """Power of ``k + n/2 - 1`` of every spectrum ``[feature, dimension]``, over degrees from a third on that are not 0.

    The sphere's own variable (its Laplacian is ``(k + n/2 - 1)^2`` and a constant): corrections are O(1/k^2).
    """
    cfg, mu = result.config, result.records["spectra"].values["mu"][0]
    k, out = np.arange(cfg.degrees + 1), np.full(mu.shape[:2], np.nan)
    for place in np.ndindex(out.shape):
        used = (k >= cfg.degrees // 3) & (mu[place] > 1e-13)
        even, odd = (used & (k % 2 == parity) for parity in (0, 1))
        own = np.log(np.maximum(k + cfg.dimension[place[1]] / 2 - 1, 0.5))
        lines = [np.polyfit(own[one], np.log(mu[place][one]), 1)[0] for one in (even, odd) if one.sum() > 2]
        out[place] = lines[0] if len(lines) == 1 else np.mean(lines) if lines else np.nan
    return out


def claims(result: Result) -> list[Claim]:
    """Spectra have no error; networks are independent."""
    return [*spectrum_claims(result), *network_claims(result)]


def spectrum_claims(result: Result) -> list[Claim]:
    cfg, names = result.config, tuple(FEATURES)
    titles = (
        "ReLU: power of k plus n + 2, one and two layers, worst",
        "sign: power of k plus n - 1 + 2^(1-L), one and two layers, worst",
        "ReLU, 1 layer: largest odd degree from 3 over mu_1",
        "ReLU, 2 layers: the largest odd degree over its even neighbours, worst n",
        "power of k minus that of the paper's threshold -(n + 2/3), sign, worst n",
    )
    if cfg.degrees < 40:
        return [Claim.not_applicable(title, "eigenvalues on the sphere", "needs 40 degrees") for title in titles]
    mu, found, n = result.records["spectra"].values["mu"][0], slopes(result), np.asarray(cfg.dimension)

    def worst(*off):
        off = np.ravel(off)
        return off[np.argmax(np.abs(off))]

    relu, sign = (tuple(name for name in names if name.startswith(f"{kind},")) for kind in ("ReLU", "sign"))
    relu_found, sign_found = (found[[names.index(name) for name in kind]] for kind in (relu, sign))
    powers = np.stack([n, n - 0.5])
    tangents = found[names.index("ReLU tangents, 1 layer")] + n + 2
    tangents = tangents[np.argmin(np.abs(tangents))]
    odd = np.arange(3, cfg.degrees + 1, 2)
    one, two = (mu[names.index(name)] for name in relu)
    zero = np.abs(one[:, odd] / one[:, 1:2]).max()
    filled = two[:, odd] / one[:, 1:2]
    last = cfg.degrees - cfg.degrees % 2 - 1
    between = np.sqrt(two[:, last - 1] * two[:, last + 1]) if last + 1 <= cfg.degrees else two[:, last - 1]
    share = (two[:, last] / between)[np.argmin(two[:, last] / between)]
    gap = (found[names.index("sign, 1 layer")] + n + 2 / 3).min()
    gap_relu = (found[names.index("ReLU, 1 layer")] + n + 2 / 3).max()
    note = "; ".join(f"{name}: " + ", ".join(f"{v:.2f}" for v in row) for name, row in zip(names, found))
    return [
        Claim.close(
            titles[0], "eigenvalues on the sphere", worst(relu_found + n + 2), 0, 0.1, note=note,
            rivals={"tangent kernel": tangents, "as the sign": worst(relu_found + n)},
        ),
        Claim.close(
            titles[1], "eigenvalues on the sphere", worst(sign_found + powers), 0, 0.1,
            rivals={"as ReLU": worst(sign_found + n + 2), "the same at any depth": worst(sign_found + n)},
        ),
        Claim.at_most(titles[2], "parity", zero, 1e-12, rivals={"two layers": float(filled.max())}),
        Claim.at_least(titles[3], "parity", share, 0.2, rivals={"one layer": 0.0}),
        Claim.at_least(titles[4], "eigenvalues on the sphere", gap, 0.0, rivals={"ReLU": gap_relu}),
    ]  # fmt: skip


def network_claims(result: Result) -> list[Claim]:
    """One hidden layer: unbiased at any width. Two: 1/n of the theory is allowed."""
    cfg, out = result.config, []
    for i, hidden in enumerate((1, 2)):
        name = f"networks on the circle, {hidden} hidden: power by degree"
        if cfg.seeds * cfg.nets < 2000:
            out.append(Claim.not_applicable(name, "NNGP", "needs 2000 networks"))
            continue
        rows = merged(result.records["networks"].values["power"])[i]  # [degree, nets]
        exact, tangent = (result.records["networks theory"].values[key][0, i] for key in ("power", "tangent"))
        used = exact > 1e-9  # one hidden layer has no odd degrees from 3 on
        rows, exact, tangent = rows[used], exact[used], tangent[used] * exact[0] / tangent[0]
        allowed = exact / cfg.width * (hidden - 1)
        k = np.maximum(np.arange(cfg.shown + 1), 1)[used]
        wrong = {"tangent kernel": tangent, "k^-2": exact[1] / k**2.0, "half": exact / 2}
        rivals = {key: mean_z(rows, value, allowed) for key, value in wrong.items()}
        out.append(Claim.cells(name, "NNGP", mean_z(rows, exact, allowed), rivals=rivals))
    return out


def figure(result: Result):
    """Spectra by feature; drawn networks over theirs."""
    cfg, mu = result.config, result.records["spectra"].values["mu"][0]
    fig, (left, right) = new_figure(1, 2, width=4.6, height=3.8)
    k, n = np.arange(1, cfg.degrees + 1), cfg.dimension[min(1, len(cfg.dimension) - 1)]
    place = cfg.dimension.index(n)
    for i, name in enumerate(FEATURES):
        shown = mu[i, place, 1:] > 1e-13
        left.plot(k[shown], mu[i, place, 1:][shown], ms=4, label=name, **measured_style(i, len(FEATURES)))
    for j, power in enumerate((n + 2, n, n + 2 / 3)):
        label = f"k^-{power:g}" if j < 2 else "the paper's threshold"
        left.plot(k[5:], 0.5 * k[5:] ** -float(power), label=label, **rival_style(j))
    left.set(xscale="log", yscale="log", xlabel="degree k", ylabel=f"eigenvalue mu_k over K(1), n = {n}")
    left.legend(fontsize=7)
    found, error = mean(merged(result.records["networks"].values["power"]))
    exact = result.records["networks theory"].values["power"][0]
    degree = np.arange(cfg.shown + 1)
    for i, hidden in enumerate((1, 2)):
        used, tint = exact[i] > 1e-9, colour(i, 3)
        style = {"fmt": "os"[i], "mfc": "none", "color": tint, "label": f"{hidden} hidden, width {cfg.width}"}
        right.errorbar(degree[used], found[i][used], error[i][used], **style)
        right.plot(degree[used], exact[i][used], "-", color=tint, lw=1)
    right.set(yscale="log", xlabel="degree k", ylabel="power of networks on the circle; lines: kernel")
    right.legend(fontsize=8)
    return fig


if __name__ == "__main__":
    from dynamics.runs.cli import main

    main(__spec__.name if __spec__ else __file__)
