"""Irreducible components of weights on a group: what a network trained on its multiplication table has built."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dynamics.precision import full_precision
from dynamics.statistics.fourier import centred
from dynamics.types import Array


class Components(NamedTuple):
    """An orthonormal basis of the real functions on a group, sorted into irreducible components, the trivial one first.

    Attributes:
        basis: one function a column.
        component: the component of each column, 0 for the constants.
        sizes: the dimension of each component: ``d^2`` for a real representation of dimension d, 2 for
            a pair of frequencies ``k, -k`` of a cyclic group.
    """

    basis: Float[np.ndarray, "n n"]
    component: Int[np.ndarray, " n"]
    sizes: Int[np.ndarray, " R"]


def irreducible_components(table: Int[np.ndarray, "n n"]) -> Components:
    """The isotypic components of the regular representation of a group, from its multiplication table.

    A class function r with ``r(g) = r(g^-1)`` gives the symmetric matrix ``R[a, b] = r(a b^-1)``, which commutes with
    all translations; by Schur's lemma it is a multiple of the identity on each irreducible component, and for random r
    the multiples differ. Its eigenspaces are the components: frequencies for a cyclic group in any order of its
    elements (multiplication modulo a prime sorts itself by the discrete logarithm), matrix elements of each
    representation for the symmetric group.

    Args:
        table: ``table[a, b] = a o b``.

    Raises:
        ValueError: when the table is not that of a group.

    Cost: one eigendecomposition ``[n, n]`` on the host.

    Reference: Serre 1977, 'Linear representations of finite groups', section 2.6.

    Example:
        >>> import numpy as np
        >>> cyclic = (np.arange(5)[:, None] + np.arange(5)) % 5
        >>> irreducible_components(cyclic).sizes.tolist()
        [1, 2, 2]
    """
    table = np.asarray(table)
    inverse = _checked_inverse(table)
    n = len(table)
    conjugates = table[table, inverse[:, None]]  # [g, x]: g x g^-1
    classes = np.minimum(conjugates.min(axis=0), conjugates[:, inverse].min(axis=0))  # a name for {x, x^-1}'s class
    values = np.random.default_rng(0).standard_normal(n)[classes]
    eigenvalues, basis = np.linalg.eigh(values[table[:, inverse]])
    flat = np.full(n, n**-0.5)
    trivial = int(np.argmax(np.abs(flat @ basis)))
    gap = 1e-9 * np.abs(eigenvalues).max() * n
    label = np.concatenate([[0], np.cumsum(np.diff(eigenvalues) > gap)])
    label = np.where(label == label[trivial], -1, label)
    component = np.unique(label, return_inverse=True)[1]
    return Components(basis, component, np.bincount(component))


def _checked_inverse(table: np.ndarray) -> np.ndarray:
    n, elements = len(table), np.arange(len(table))
    square = table.shape == (n, n) and (np.sort(table, axis=0) == elements[:, None]).all()
    identity = np.flatnonzero((table == elements).all(axis=1)) if square else elements[:0]
    some = elements if n <= 32 else np.random.default_rng(0).choice(n, 32, replace=False)  # they generate the group
    if identity.size != 1 or any((table[table, c] != table[:, table[:, c]]).any() for c in some):
        raise ValueError(f"table: got {table.shape} without identity, inverses or associativity; allowed: a group's")
    return np.argmax(table == identity[0], axis=1)


@full_precision
def component_power(weights: Float[Array, "*b n"], components: Components) -> Float[Array, "*b _"]:
    """Power of ``weights`` in each of the ``R - 1`` components but the trivial one.

    On a cyclic group these are, up to a factor, the powers of the frequencies (``fourier.frequency_power``).

    Args:
        weights: real, indexed by the group's elements; half precision and integers are widened to float32.
        components: of the group.

    Raises:
        ValueError: for complex weights.
    """
    weights = centred(weights)
    squares = (weights @ jnp.asarray(components.basis, weights.dtype)) ** 2
    belongs = np.eye(len(components.sizes))[components.component][:, 1:]
    return squares @ jnp.asarray(belongs, weights.dtype)


def component_share(weights: Float[Array, "*b n"], components: Components) -> Float[Array, "*b"]:
    """The share of each neuron's power in its largest component, constants left out.

    A random neuron's share is about ``max(sizes) / (n - 1)``; a neuron that has settled on one representation has 1,
    one whose weights are constant (all 0, say) NaN.
    """
    power = component_power(weights / jnp.max(jnp.abs(weights), axis=-1, keepdims=True), components)
    return jnp.max(power, axis=-1) / jnp.sum(power, axis=-1)
