"""Taylor expansions of a model in its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dynamics.arguments import check_counts
from dynamics.program.forward import pushed
from dynamics.types import Array, Params


def linearize(f: Callable[..., Array], params: Params) -> Callable[..., Array]:
    """``f_lin(p, x) = f(params, x) + d f(params, x)/d params (p - params)`` (Lee et al. 2019, section 2.2).

    Args:
        f: ``(params, x, **kwargs) -> output``.
        params: the expansion point, a pytree.

    Returns:
        A function of the same signature. Cost: one jvp a call.

    >>> f_lin = linearize(lambda p, x: x @ p**2, 3.0 * jax.numpy.ones((1, 1)))
    >>> float(f_lin(jax.numpy.full((1, 1), 3.5), jax.numpy.ones((1, 1)))[0, 0])
    12.0
    """
    return taylor_expand(f, params, 1)


def taylor_expand(f: Callable[..., Array], params: Params, degree: int) -> Callable[..., Array]:
    """``f_d(p, x) = sum_(r <= degree) d^r/dt^r f(params + t (p - params), x) / r!`` at ``t = 0``.

    Args:
        f: ``(params, x, **kwargs) -> output``, a pytree of arrays.
        params: the expansion point, a pytree; integer and boolean leaves are constants.
        degree: order of the expansion, at least 0; 1 is ``linearize``.

    Raises:
        ValueError: for a degree below 0.

    Returns:
        A function of the same signature. Cost: ``degree`` nested jvps, ``2^degree`` evaluations in the worst case.

    Reference: Lee et al. 2019, section 2.2; Huang & Yau 2020 for higher orders.
    """
    check_counts(0, degree=degree)
    leaves, structure = jax.tree.flatten(params)
    moving = [place for place, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]

    def f_taylor(p, *args, **kwargs):
        def g(moved):
            whole = list(leaves)
            for place, leaf in zip(moving, moved, strict=True):
                whole[place] = leaf
            return f(jax.tree.unflatten(structure, whole), *args, **kwargs)

        given, start = jax.tree.leaves(p), [leaves[place] for place in moving]
        shift = [given[place] - leaves[place] for place in moving]
        terms = _derivatives(g, start, shift, degree)
        scaled = [jax.tree.map(lambda a, r=r: a / math.factorial(r), term) for r, term in enumerate(terms)]
        return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *scaled)

    return f_taylor


def _derivatives(f: Callable, params: Params, shift: Params, degree: int) -> list:
    """``[f, f', ..., f^(degree)]`` at ``params`` along ``shift``, from one nest of jvps."""
    if degree == 0:
        return [f(params)]

    def up_to(q):
        return _derivatives(f, q, shift, degree - 1)

    values, slopes = pushed(up_to, params, shift)
    return [*values, slopes[-1]]
