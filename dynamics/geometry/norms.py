"""Norms of a layer's update, their duals, and steepest descent under them as an optax transformation."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from dynamics.program.real_view import wide
from dynamics.types import Array

Norm = Literal["spectral", "max", "frobenius"]
NORMS: tuple[Norm, ...] = get_args(Norm)
QUINTIC = (3.4445, -4.775, 2.0315)


class Dual(NamedTuple):
    """A gradient G seen by a norm.

    Attributes:
        norm: the dual norm ``|G|_* = max <G, T>`` over ``|T| <= 1``.
        direction: the T where that is attained, of the form of G; where G says nothing (a zero of its entries, its
            null space) it is 0.
    """

    norm: Float[Array, ""]
    direction: Float[Array, ...]


def dual(gradient: Float[Array, ...], norm: Norm, *, exact: bool = True) -> Dual:
    """The dual norm of a layer's gradient, and the direction of steepest ascent under the norm.

    | norm of T | dual norm | direction |
    |---|---|---|
    | ``spectral``: largest singular value | sum of singular values | ``U V^T`` of ``G = U S V^T`` |
    | ``max``: largest entry | sum of moduli | ``sign G`` |
    | ``frobenius``: root of the sum of squares | the same | ``G/|G|`` |

    Args:
        gradient: G. With two or more axes a matrix, the last axis its columns and all others its rows (a dense layer's
            or a convolution's kernel); with fewer, one column.
        norm: of the update.
        exact: by a singular value decomposition, or for the spectral norm by five Newton-Schulz iterations, as Muon
            (``optax.contrib.muon``): the direction's singular values are then some .7 to 1.2, and less for those of G
            below a hundredth of ``|G|``; the norm is that of this direction, ``<G, T>``.

    Raises:
        ValueError: for a norm of another name; TypeError for complex numbers.

    Cost: of ``[m, n]`` with m >= n, exact some ``20 m n^2`` operations in a decomposition, else ``10 (2 m n^2 + n^3)``
    in products.

    Reference: Bernstein & Newhouse 2024, 'Old optimizer, new norm', propositions 2, 4 and 5; Jordan et al. 2024,
    'Muon', for the iteration.

    Example:
        >>> import jax.numpy as jnp
        >>> found = dual(jnp.array([[3.0, 0.0], [0.0, -4.0]]), "spectral")
        >>> float(found.norm), jnp.round(found.direction, 5).tolist()
        (7.0, [[1.0, 0.0], [0.0, -1.0]])
    """
    _check(norm)
    if not jnp.issubdtype(jnp.result_type(gradient), jnp.floating):
        raise TypeError(
            f"gradient: got {jnp.result_type(gradient)}; allowed: real floating numbers (evolve.descent takes complex "
            "parameters apart)"
        )
    gradient = jnp.asarray(gradient)
    g = wide(gradient)
    if norm == "max" or not g.size:
        direction = jnp.sign(g)
    elif norm == "frobenius" or g.ndim < 2:
        size = jnp.max(jnp.abs(g), initial=0.0)  # squares neither over- nor underflow
        scaled = g / jnp.where(size > 0, size, 1.0)
        direction = scaled / jnp.where(size > 0, jnp.linalg.norm(scaled.ravel()), 1.0)
    else:
        matrix = jnp.reshape(g, (-1, g.shape[-1]))
        direction = jnp.reshape((_polar if exact else _newton_schulz)(matrix), g.shape)
    return Dual(jnp.sum(g * direction), direction.astype(gradient.dtype))


def _check(norm: Any) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm: got {norm!r}; allowed: {', '.join(NORMS)}")


def _polar(matrix: Float[Array, "m n"]) -> Float[Array, "m n"]:
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    kept = s > max(matrix.shape) * jnp.finfo(s.dtype).eps * jnp.max(s, initial=0.0)
    return (u * kept) @ vt


def _newton_schulz(matrix: Float[Array, "m n"], iterations: int = 5) -> Float[Array, "m n"]:
    """Singular values s become ``p(p(... s/|G|))`` with ``p(s) = 3.4445 s - 4.775 s^3 + 2.0315 s^5``."""
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    size = jnp.max(jnp.abs(x), initial=0.0)
    x = x / jnp.where(size > 0, size, 1.0)
    x = x / jnp.where(size > 0, jnp.linalg.norm(x), 1.0)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def norm_dual(norm: Norm, *, exact: bool = True, unit: bool = False) -> optax.GradientTransformation:
    """Steepest descent under a norm, layer by layer, for any optax chain: ``G -> |G|_* T``.

    With ``optax.scale_by_learning_rate(eta)`` the step is ``argmin <G, D> + |D|^2/(2 eta)``, which lowers a loss of
    curvature at most ``Lambda |D|^2`` by ``|G|_*^2/(2 Lambda)`` or more at ``eta = 1/Lambda``. With ``unit`` the step
    is T, of length eta in the norm whatever the gradient: sign descent (max), Muon without momentum (spectral),
    normalised descent (frobenius); with ``optax.add_decayed_weights(lam)`` after it, it ends in the ball ``|W| <=
    1/lam``, at ``min L`` there. ``|G|_* T`` is taken in float32 or more: what does not fit half precision becomes the
    largest number there.

    Args:
        norm: ``spectral``, ``max`` or ``frobenius``, of every layer; ``optax.partition`` gives layers their own.
        exact: see ``dual``.
        unit: whether to leave out ``|G|_*``.

    Raises:
        ValueError: for a norm of another name.

    Cost: see ``dual``.

    Reference: Bernstein & Newhouse 2024, 'Old optimizer, new norm'.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> sign = optax.chain(norm_dual("max", unit=True), optax.scale_by_learning_rate(0.1))
        >>> update, _ = sign.update(jnp.array([[3.0, -4.0]]), sign.init(jnp.zeros((1, 2))))
        >>> update.tolist()
        [[-0.10000000149011612, 0.10000000149011612]]
    """
    _check(norm)

    def update(updates, params):
        def layer(g):
            found = dual(g, norm, exact=exact)
            if unit:
                return found.direction
            step, most = found.norm * wide(found.direction), float(jnp.finfo(g.dtype).max)
            return jnp.where(jnp.isfinite(step), jnp.clip(step, -most, most), step).astype(g.dtype)

        return jax.tree.map(layer, updates)

    return optax.stateless(update)
