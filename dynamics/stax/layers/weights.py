"""Laws of initial weights other than independent Gaussian entries: same kernels at infinite width, other fluctuations.

Entries have mean 0 and variance 1 in each of them, as layers take them before they are scaled.
"""

from __future__ import annotations

from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from dynamics.arguments import check_counts
from dynamics.types import Array


class Haar(NamedTuple):
    """Orthogonal weights: ``sqrt(N) U`` with U the corner of a Haar distributed orthogonal matrix, N its larger side.

    A square layer keeps lengths exactly. Cost: one QR of ``[N, smaller side]``.

    Reference: Saxe, McClelland & Ganguli 2013.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dynamics import stax
        >>> _, (weight, _) = stax.Dense(4, weights=stax.Haar()).init(jax.random.key(0), (-1, 4))
        >>> bool(jnp.allclose(weight @ weight.T / 4, jnp.eye(4), atol=1e-6))
        True
    """

    def draw(self, key: PRNGKeyArray, fan_in: int, fan_out: int) -> Float[Array, "fan_in fan_out"]:
        """The weights, before scaling."""
        return max(fan_in, fan_out) ** 0.5 * jax.random.orthogonal(key, fan_in, m=fan_out)


class LowRank(NamedTuple):
    """Weights ``sqrt(fan_in / r) P C``: P the first r columns of a Haar matrix, C ``[r, fan_out]`` standard normal.

    Its infinite-width kernel is the usual one as ``rank`` grows too; at fixed r the kernel itself fluctuates.

    Attributes:
        rank: r; ``min(r, fan_in)`` is used.
    """

    rank: int

    def draw(self, key: PRNGKeyArray, fan_in: int, fan_out: int) -> Float[Array, "fan_in fan_out"]:
        """The weights, before scaling."""
        one, two = jax.random.split(key)
        r = min(self.rank, fan_in)
        return (fan_in / r) ** 0.5 * jax.random.orthogonal(one, fan_in, m=r) @ jax.random.normal(two, (r, fan_out))


class Sparse(NamedTuple):
    """Independent entries that are 0 but for a share ``density``, there ``N(0, 1/density)``; none is held at 0 later.

    Attributes:
        density: in (0, 1].
    """

    density: float

    def draw(self, key: PRNGKeyArray, fan_in: int, fan_out: int) -> Float[Array, "fan_in fan_out"]:
        """The weights, before scaling."""
        one, two = jax.random.split(key)
        kept = jax.random.bernoulli(one, self.density, (fan_in, fan_out))
        return jnp.where(kept, jax.random.normal(two, (fan_in, fan_out)), 0.0) / self.density**0.5


WeightLaw = Haar | LowRank | Sparse


def check_law(weights: WeightLaw | None) -> None:
    """Raises unless ``weights`` is a law or None, with a rank of 1 or more and a density in (0, 1]."""
    if weights is not None and not isinstance(weights, WeightLaw):
        shown = f"the class {weights.__name__}" if isinstance(weights, type) else repr(weights)
        raise TypeError(f"weights: got {shown}; allowed: None, stax.Haar(), stax.LowRank(rank), stax.Sparse(density)")
    if isinstance(weights, LowRank):
        check_counts(rank=weights.rank)
    if isinstance(weights, Sparse) and not (isinstance(weights.density, Real) and 0 < weights.density <= 1):
        raise ValueError(f"density: got {weights.density}; allowed: a number in (0, 1]")
