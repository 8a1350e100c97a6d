"""Kernels made tile by tile equal those of all pairs at once; depth, width and error estimates of their parts."""

import decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import stax
from dynamics.stax.activations import piecewise_linear
from dynamics.stax.kernel import tiles


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(tiles, "CACHED", 16)


def inputs(n, channels=20):
    """``n`` vectors; some coincide, are close, parallel, opposite or zero, in different tiles."""
    x = np.array(jax.random.normal(jax.random.key(0), (n, channels)))
    x[n - 1], x[n - 2], x[n - 3], x[n - 4], x[n - 5] = x[0], x[1] * (1 + 1e-3), 3 * x[2], -x[3], 0
    return jnp.asarray(x)


NETWORKS = {
    "relu": stax.serial(stax.Dense(8, 1.4, 0.1), stax.Relu(), stax.Dense(8, 1.4), stax.Relu(), stax.Dense(1)),
    "tanh": stax.serial(stax.Dense(8, 1.4, 0.1), stax.Tanh(), stax.Dense(8), stax.LayerNorm(), stax.Dense(1, 1.1, 0.2)),
    "branches": stax.serial(
        stax.FanOut(2), stax.parallel(stax.Dense(8, 1.1), stax.serial(stax.Dense(8), stax.Erf(), stax.Dense(8)))
    ),
}


@pytest.mark.parametrize(
    ("name", "n"), [("relu", 40), *(pytest.param(m, n, marks=pytest.mark.slow) for m in NETWORKS for n in (17, 40))]
)
def test_tiles_equal_the_whole(name, n, precision, small, monkeypatch):
    kernel_fn, x = NETWORKS[name].kernel, inputs(n).astype(precision)
    tiled = kernel_fn(x)
    monkeypatch.setattr(tiles, "CACHED", 10**6)
    whole = jax.jit(kernel_fn)(x)
    assert jax.tree.structure(tiled) == jax.tree.structure(whole)
    rounding = 1e-12 if precision == "float64" else 2e-6
    for a, b in zip(jax.tree.leaves(tiled), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=rounding, atol=rounding * float(jnp.max(jnp.abs(b))))


def test_tiles_are_symmetric_exact_on_the_diagonal_and_need_no_more_than_asked(small, x64):
    x, kernel_fn = inputs(40), NETWORKS["relu"].kernel
    k = kernel_fn(x)
    np.testing.assert_allclose(k.ntk, k.ntk.T, rtol=1e-14)
    np.testing.assert_array_equal(jnp.diag(k.gap), 0)
    # Inputs -1 and 0 are equal and lie in different tiles.
    np.testing.assert_allclose(k.gap[0, -1], 0, atol=1e-15)
    found = kernel_fn(x, None, ("nngp", "cov1"))
    np.testing.assert_allclose(jnp.diag(found.nngp), found.cov1, rtol=1e-14)
    np.testing.assert_allclose(found.nngp, k.nngp, rtol=1e-13)


def test_tiles_of_two_sets_equal_the_whole(small, x64, monkeypatch):
    kernel_fn, x = NETWORKS["relu"].kernel, inputs(24)
    pairs = (x, 1.1 * x[:9]), (x[:9], x)
    tiled = [kernel_fn(*pair) for pair in pairs]
    monkeypatch.setattr(tiles, "CACHED", 10**6)
    for pair, found in zip(pairs, tiled, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, kernel_fn(*pair))


def test_tiles_overwrite_the_inner_products_in_place():
    """Beside the result and the inputs less memory than one row of tiles, whatever the number of pairs."""
    x = jax.ShapeDtypeStruct((1000, 100), jnp.float32)
    compiled = jax.jit(lambda x: NETWORKS["relu"].kernel(x, None, "ntk")).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 50e3


@pytest.mark.parametrize("apart", [1e-4, 1e-3])
def test_smooth_gap_of_parallel_inputs(apart, x64):
    """Between inputs of nearly equal norm the expansion of the gap is good to the fourth order of the difference."""
    x = jnp.asarray([[1.0], [1.0 + apart]])
    k = stax.serial(stax.Dense(1), stax.Erf()).kernel(x)
    q = np.array([1.0, (1 + apart) ** 2])
    covariance = 2 / np.pi * np.arcsin(2 * np.sqrt(np.outer(q, q)) / np.sqrt(np.outer(1 + 2 * q, 1 + 2 * q)))
    exact = np.sqrt(covariance[0, 0] * covariance[1, 1]) - covariance[0, 1]
    # 4e-16 is the rounding of the covariances; without the fourth order the error would be apart.
    np.testing.assert_allclose(k.gap[0, 1], exact, rtol=10 * apart**2, atol=4e-16)


@pytest.mark.slow
def test_gradients_through_tiles(small, x64, monkeypatch):
    x = jax.random.normal(jax.random.key(0), (20, 18))

    def value(x, w):
        kernel = stax.serial(stax.Dense(8, w, 0.3), stax.Relu(), stax.Dense(1, w)).kernel(x, None, "ntk")
        return jnp.sum(kernel * jnp.cos(jnp.arange(20.0) + jnp.arange(20.0)[:, None]))

    tiled = jax.grad(value, (0, 1))(x, 1.2), jax.jit(jax.vmap(value, (0, None)))(x[None], 1.2)
    monkeypatch.setattr(tiles, "CACHED", 10**6)
    whole = jax.grad(value, (0, 1))(x, 1.2), value(x, 1.2)[None]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), tiled, whole)


@pytest.mark.parametrize(("n", "limit"), [(17, 16), (400, 384), (2000, 384), (33, 16), (32, 16)])
def test_tiles_cover_every_row(n, limit):
    starts, size = tiles.tile_starts(n, limit)
    covered = np.zeros(n, bool)
    for start in starts:
        assert 0 <= start <= n - size
        covered[start : start + size] = True
    assert covered.all()
    assert size <= limit + 15


def test_angle_and_its_lost_part_within_their_error(precision):
    versine = jnp.asarray(np.concatenate([np.geomspace(1e-12, 1, 400), 2 - np.geomspace(1e-7, 1, 400)]), precision)
    exact = np.asarray(versine, np.longdouble)
    theta = 2 * np.arctan2(np.sqrt(exact), np.sqrt(2 - exact))
    found, lost = piecewise_linear.angle_and_lost(versine)
    np.testing.assert_allclose(found, theta.astype(float), rtol=1e-14 if precision == "float64" else 4e-7)
    # sin - theta cos cancels in the reference's own formula below 1e-3; compare above it.
    large = np.asarray(versine) > 1e-3
    reference = (np.sqrt(exact * (2 - exact)) - theta * (1 - exact)).astype(float)
    np.testing.assert_allclose(lost[large], reference[large], rtol=1e-10 if precision == "float64" else 6e-7)
    # Below, the series 2 sqrt(2) / 3 v^(3/2) (1 + v / 20) is exact to v^2.
    tiny = ~large & (np.asarray(versine) > 1e-5)
    series = (2 * 2**0.5 / 3 * exact**1.5 * (1 + exact / 20)).astype(float)
    np.testing.assert_allclose(lost[tiny], series[tiny], rtol=2e-6)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_affine_gap_is_exact_for_any_ratio_of_deviations(scale, x64):
    """Dense with a bias: the gap from covariances in high precision, for ratios of norms from 1 to 1e6."""
    x = np.array([[1.0, 0.0], [1.0 + 1e-9, 0.0], [30.0, 0.0], [1e6, 0.0], [0.0, 0.0], [1.0, 1e-6]])
    k = stax.Dense(1, 1.3, scale).kernel(jnp.asarray(x))
    with decimal.localcontext(prec=60):
        one = [[decimal.Decimal(float(v)) for v in row] for row in x]
        weight, bias = (decimal.Decimal(float(v)) ** 2 for v in (1.3, scale))
        cov = [[weight * (a[0] * b[0] + a[1] * b[1]) / 2 + bias for b in one] for a in one]
        gap = [[float((cov[i][i] * cov[j][j]).sqrt() - cov[i][j]) for j in range(6)] for i in range(6)]
    s = np.sqrt(np.maximum(np.diag(k.nngp), 1e-30))
    np.testing.assert_allclose(k.nngp / np.outer(s, s), np.array(cov, float) / np.outer(s, s), rtol=0, atol=1e-14)
    # Between inputs 1e-9 apart the inputs' own gap is exact, and the bias adds 1e-19: below rounding of 1 - cos.
    np.testing.assert_allclose(k.gap, gap, rtol=1e-6, atol=1e-17)


def test_depth_of_ten_thousand_is_a_small_program(x64):
    """The program of a repeated layer does not grow with depth, and NTK and NNGP of depth 10^4 stay finite."""
    layer = stax.serial(stax.Relu(), stax.Dense(8, 2**0.5))
    x = jax.random.normal(jax.random.key(0), (3, 4))

    def program(depth):
        kernel_fn = stax.serial(stax.Dense(8), stax.repeat(layer, depth)).kernel
        return len(str(jax.make_jaxpr(lambda x: kernel_fn(x, None, "ntk"))(x)))

    assert abs(program(10_000) - program(10)) < 20
    ntk = stax.serial(stax.Dense(8), stax.repeat(layer, 10_000)).kernel(x, None, "ntk")
    # Critical ReLU: Theta / depth -> q (1 + 3 [x = x']) / 4 (Hayou, Doucet & Rousseau 2019).
    s = np.linalg.norm(x, axis=-1) / 2
    expected = np.outer(s, s) * (1 + 3 * np.eye(3)) / 4 * 10_000
    np.testing.assert_allclose(ntk, expected, rtol=0.01)


def test_mup_is_a_closed_recursion_with_a_vanishing_readout(x64):
    """Hidden layers keep k; the readout's k falls as 1 / width, its NTK does not; no width enters otherwise."""
    x, found = jax.random.normal(jax.random.key(0), (3, 4)), []
    for width in (64, 256):
        mup = [stax.Dense(n, 1.3, parameterization="mup") for n in (width, width, 1)]
        k = stax.serial(mup[0], stax.Relu(), mup[1], stax.Relu(), mup[2]).kernel(x)
        found.append((width * k.nngp, k.ntk))
    ntk = [stax.Dense(8, 1.3), stax.Relu(), stax.Dense(8, 1.3), stax.Relu(), stax.Dense(1, 1.3)]
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-12)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-12)
    np.testing.assert_allclose(found[0][0], stax.serial(*ntk).kernel(x).nngp, rtol=1e-12)
