"""How far a network of finite width is from its kernel limit: fluctuation and drift of its kernel as powers of n."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray, Shaped

from dynamics.arguments import check_counts
from dynamics.empirical import empirical_ntk_fn
from dynamics.statistics import PowerLaw, kernel_distance, power_law
from dynamics.types import Array, Model, Params


class WidthStudy(NamedTuple):
    """Kernels against width, with fitted powers and their 95 % intervals over seeds.

    Attributes:
        fluctuation: ``|K_0 - K_inf| / |K_inf|``; theory: exponent -1/2.
        drift: ``|K_T - K_0| / |K_0|``, or None without training; theory (NTK parametrisation): -1.
        fluctuation_law, drift_law: the fits (``str`` gives exponent and interval); None for fewer than three widths.
    """

    widths: Int[np.ndarray, " W"]
    fluctuation: Float[np.ndarray, "seeds W"]
    drift: Float[np.ndarray, "seeds W"] | None
    fluctuation_law: PowerLaw | None
    drift_law: PowerLaw | None


def kernel_width_study(
    network: Callable[[int], Model],
    x: Shaped[Array, "n ..."],
    widths: Sequence[int],
    key: PRNGKeyArray,
    *,
    seeds: int = 16,
    train: Callable[[Params], Params] | None = None,
) -> WidthStudy:
    """Measures, over widths, how the NTK at the start scatters about its limit and how far training moves it.

    Args:
        network: ``width -> Model`` with a ``kernel``.
        x: inputs on which kernels are compared (in Frobenius norm, outputs averaged).
        widths: at least one; three or more for the fits.
        key: random key; each width and seed gets its own.
        seeds: independent networks a width.
        train: ``params -> params`` after training, jit- and vmap-able, such as a ``simulate`` closed over its data; it
            must be the same function of the network's outputs at each width. None leaves the drift out.

    Returns:
        A ``WidthStudy``.

    Raises:
        ValueError: when widths are not positive and increasing, ``seeds < 1``, or a model has no kernel.

    Cost: for each width one program of ``seeds`` networks: two kernels and one training each. The interval is Student's
    t over the exponents of single seeds.

    Reference: Jacot, Gabriel & Hongler 2018; Huang & Yau 2020, theorem 2.2 (drift 1/n); Hanin & Nica 2020, theorem 1
    (variance of the NTK 1/n).

    Example:
        >>> from dynamics import stax
        >>> import jax
        >>> network = lambda n: stax.serial(stax.Dense(n), stax.Relu(), stax.Dense(1))
        >>> study = kernel_width_study(network, jax.numpy.eye(3), (16, 64, 256), jax.random.key(0), seeds=8)
        >>> study.fluctuation_law.low < -0.5 < study.fluctuation_law.high
        True
    """
    steps = np.diff(np.asarray(widths))
    if len(widths) < 1 or min(widths) < 1 or np.any(steps <= 0):
        raise ValueError(f"widths: got {tuple(widths)}; allowed: positive integers, ascending")
    check_counts(seeds=seeds)
    columns = [_of_width(network(n), x, jax.random.fold_in(key, n), seeds, train) for n in widths]
    fluctuation, drift = (np.stack(readings, axis=1) for readings in zip(*columns, strict=True))
    return WidthStudy(
        np.asarray(widths),
        fluctuation,
        None if train is None else drift,
        _law(widths, fluctuation),
        None if train is None else _law(widths, drift),
    )


def _of_width(model: Model, x: Array, key: Array, seeds: int, train) -> tuple[np.ndarray, np.ndarray]:
    if model.kernel is None:
        raise ValueError("network: got a model with kernel None; allowed: models with an infinite-width kernel")
    limit, ntk = model.kernel(x, None, "ntk"), empirical_ntk_fn(model.apply)

    @jax.jit
    @jax.vmap
    def read(key):
        params = model.init(key, x.shape)[1]
        start = ntk(x, None, params)
        end = start if train is None else ntk(x, None, train(params))
        return kernel_distance(start, limit), kernel_distance(end, start)

    one, two = read(jax.random.split(key, seeds))
    return np.asarray(one), np.asarray(two)


def _law(widths: Sequence[int], values: np.ndarray) -> PowerLaw | None:
    return power_law(widths, values) if len(widths) > 2 else None
