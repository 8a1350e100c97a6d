"""Potentials of mirror maps, weight by weight."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Float

from dynamics.arguments import check_numbers
from dynamics.types import Array

PROBES = (-2.0, -0.7, -0.1, 0.1, 0.7, 2.0)


class Potential(NamedTuple):
    """A convex function of each weight, ``phi(w) = sum_i phi(w_i)``, whose gradient is the dual variable theta.

    Attributes:
        phi: ``w -> phi(w)``, entry by entry.
        gradient: ``w -> theta = phi'(w)``, entry by entry.
        inverse: ``(theta, w) -> v`` with ``phi'(v) = theta`` and v on w's side of 0, where phi' tells them not apart.
    """

    phi: Callable[[Float[Array, "*s"]], Float[Array, "*s"]]
    gradient: Callable[[Float[Array, "*s"]], Float[Array, "*s"]]
    inverse: Callable[[Float[Array, "*s"], Float[Array, "*s"]], Float[Array, "*s"]]

    @classmethod
    def of(cls, phi: Callable[..., Array], inverse: Callable[..., Array]) -> Potential:
        """The potential of a function of one's own.

        Args:
            phi: convex, entry by entry, of JAX.
            inverse: of its derivative: ``theta -> w``, or ``(theta, w) -> v`` where the side of 0 is to be kept.

        Raises:
            TypeError: when ``phi`` does not keep the shape.
            ValueError: when ``inverse`` is not that of ``phi'`` at 0.1, 0.7, 2 or their negatives (those where phi' is
                not finite are left out), or phi' falls between two of one side.

        Example:
            >>> import jax.numpy as jnp
            >>> hypentropy = Potential.of(
            ...     lambda w: w * jnp.arcsinh(w) - jnp.sqrt(1 + w**2), lambda theta: jnp.sinh(theta)
            ... )
            >>> w = jnp.float32(2.0)
            >>> round(float(hypentropy.inverse(hypentropy.gradient(w), w)), 5)
            2.0
        """
        required = [one for one in inspect.signature(inverse).parameters.values() if one.default is one.empty]
        sided = len(required) > 1
        made = cls(phi, lambda w: _slope(phi, w), inverse if sided else lambda theta, w: inverse(theta))
        _check(made)
        return made

    def curvature(self, w: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """``phi''(w)``, entry by entry."""
        return _slope(self.gradient, w)

    def divergence(self, w: Float[Array, "*s"], start: Float[Array, "*s"]) -> Float[Array, ""]:
        """Bregman's ``D_phi(w, w_0) = sum_i phi(w_i) - phi(w_0i) - phi'(w_0i) (w_i - w_0i)``."""
        return jnp.sum(self.phi(w) - self.phi(start) - self.gradient(start) * (w - start))


def _slope(fn: Callable[[Array], Array], w: Array) -> Array:
    w = jnp.asarray(w)
    w = w if jnp.issubdtype(w.dtype, jnp.inexact) else w.astype(float)
    return jax.jvp(fn, (w,), (jnp.ones_like(w),))[1]


def _check(potential: Potential) -> None:
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        w = jnp.asarray(PROBES)
        if (shape := jnp.shape(potential.phi(w))) != w.shape:
            raise TypeError(f"phi: got shape {shape} of {w.shape}; allowed: a function entry by entry, of w's shape")
        theta = potential.gradient(w)
        back, usable = potential.inverse(theta, w), np.isfinite(theta)
    theta, back = np.asarray(theta)[usable], np.asarray(back)[usable]
    w = np.asarray(PROBES)[usable]
    if not w.size or not all(np.all(np.diff(theta[side]) >= 0) for side in (w < 0, w > 0)):
        raise ValueError(f"phi: got phi' = {theta} at {w}; allowed: a convex function, finite at some of {PROBES}")
    if not np.allclose(back, w, 1e-6):
        raise ValueError(f"inverse: got {back} of phi' at {w}; allowed: the inverse of phi'")


def power(p: float) -> Potential:
    """``phi(w) = |w|^p / p``, ``theta = sign(w) |w|^(p-1)``; p = 2 is plain gradient descent.

    Args:
        p: > 1.

    Raises:
        ValueError: for any other p; TypeError for what is no number, or traced.

    Example:
        >>> float(power(3).gradient(jnp.float32(-2.0)))
        -4.0
    """
    if isinstance(p, Tracer):
        raise TypeError(f"p: got a traced value, {p.aval}; allowed: a number > 1, one for each potential")
    check_numbers(p=(p, (lambda v: (v > 1) & (v < np.inf), "a number > 1")))
    return _power(float(p))


@functools.cache
def _power(p: float) -> Potential:
    p = int(p) if p == int(p) else p  # whole powers are products

    @functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
    def odd(x: Array, exponent: float) -> Array:
        return jnp.sign(x) * jnp.abs(x) ** exponent

    @odd.defjvp
    def _(exponent, at, along):  # at 0 too, where it is 0 or infinite
        return odd(at[0], exponent), exponent * jnp.abs(at[0]) ** (exponent - 1) * along[0]

    def phi(w: Array) -> Array:
        return jnp.abs(w) ** p / p

    if p == 2:
        return Potential(phi, lambda w: w, lambda theta, w: theta)
    return Potential(phi, lambda w: odd(w, p - 1), lambda theta, w: odd(theta, 1 / (p - 1)))


@functools.cache
def signed_entropy() -> Potential:
    """``phi(w) = |w| ln|w| - |w|``, ``theta = sign(w) ln|w|``: exponentiated gradients that keep every weight's sign.

    Its mirror descent is ``w <- w exp(-eta sign(w) g)``. A weight of 0 stays 0.

    Reference: Cornford et al. 2024, 'Brain-like learning with exponentiated gradients'.

    Example:
        >>> entropy, w = signed_entropy(), jnp.float32(-1.0)
        >>> round(float(entropy.inverse(entropy.gradient(w) - 0.5, w)), 4)  # -exp(0.5)
        -1.6487
    """

    def logarithm(w: Array) -> Array:
        return jnp.log(jnp.where(w == 0, 1.0, jnp.abs(w)))

    return Potential(
        lambda w: jnp.abs(w) * (logarithm(w) - 1),
        lambda w: jnp.sign(w) * logarithm(w),
        lambda theta, w: jnp.sign(w) * jnp.exp(jnp.sign(w) * theta),
    )
