"""Our eigenvalues beside matfree's, on one matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import linalg

N = 60


@pytest.fixture
def matrix():
    """Symmetric ``[n, n]`` with a bulk and four outliers, as Hessians have."""
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (N, N)))[0]
    spectrum = jnp.concatenate([jnp.linspace(-0.2, 0.5, N - 4), jnp.array([2.0, 3.0, 5.0, 8.0])])
    return (basis * spectrum) @ basis.T


@pytest.mark.slow
def test_the_largest_eigenvalues_are_matfrees(x64, matrix):
    decomp, eig = pytest.importorskip("matfree.decomp"), pytest.importorskip("matfree.eig")
    start = jax.random.normal(jax.random.key(1), (N,))
    theirs = eig.eigh_partial(decomp.tridiag_sym(40))(lambda v: matrix @ v, start)[0]
    ours = linalg.eigenpairs(lambda v: matrix @ v, start, 4, tolerance=1e-8)
    np.testing.assert_allclose(ours.values, np.sort(theirs)[::-1][:4], rtol=1e-8)  # both Lanczos runs have converged
