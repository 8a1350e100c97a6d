"""Potentials, mirror descent, norms and their duals: identities, independent references, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics import observe, stability
from dynamics.evolve import gradient_descent, mirror, simulate
from dynamics.geometry import NORMS, Potential, dual, norm_dual, power, signed_entropy
from dynamics.theory.mirror import projection
from dynamics.types import Batch, Objective, View

W = jnp.array([0.3, -1.2, 2.0, -0.1])
POTENTIALS = {"2": power(2), "3": power(3), "1.5": power(1.5), "entropy": signed_entropy()}
L = Objective(lambda w, x: x @ w, lambda f, y: 0.5 * jnp.sum((f - y) ** 2))


@pytest.mark.parametrize("name", POTENTIALS)
def test_the_gradient_is_that_of_phi_and_is_inverted(name, x64):
    potential = POTENTIALS[name]
    w = jnp.asarray(W, float)
    by_jax = jax.grad(lambda w: jnp.sum(potential.phi(w)))(w)
    np.testing.assert_allclose(potential.gradient(w), by_jax, rtol=1e-12)
    np.testing.assert_allclose(potential.inverse(potential.gradient(w), w), w, rtol=1e-12)
    np.testing.assert_allclose(potential.curvature(w), jnp.diag(jax.jacobian(potential.gradient)(w)), rtol=1e-12)
    assert potential.divergence(w, w) == 0
    assert potential.divergence(w, 1.5 * w) > 0  # strictly convex on each side of 0


def test_a_potential_of_ones_own_is_checked(request):
    own = Potential.of(lambda w: jnp.abs(w) ** 3 / 3, lambda theta: jnp.sign(theta) * jnp.sqrt(jnp.abs(theta)))
    np.testing.assert_allclose(own.gradient(W), power(3).gradient(W), rtol=1e-6)
    scaled = Potential.of(lambda w: w**4 / 4, lambda theta, root=3: jnp.cbrt(theta) if root == 3 else theta)
    np.testing.assert_allclose(scaled.inverse(jnp.array([8.0]), jnp.ones(1)), [2.0], rtol=1e-6)
    logarithm = Potential.of(lambda w: w * jnp.log(w) - w, jnp.exp)  # of positive weights alone
    np.testing.assert_allclose(logarithm.gradient(jnp.array([2.0])), np.log([2.0]), rtol=1e-6)
    with pytest.raises(TypeError, match=r"phi: got shape \(\) of \(6,\); allowed: a function entry by entry"):
        Potential.of(lambda w: jnp.sum(w**2), lambda theta: theta)
    with pytest.raises(ValueError, match=r"inverse: got .*; allowed: the inverse of phi'"):
        Potential.of(lambda w: w**2, lambda theta: theta)
    with pytest.raises(ValueError, match=r"phi: got .*; allowed: a convex function"):
        Potential.of(lambda w: -(w**2) / 2, lambda theta: -theta)
    with pytest.raises(ValueError, match="p: got 1; allowed: a number > 1"):
        power(1)
    request.getfixturevalue("as_users_meet_it")
    assert power(jnp.float32(3)) is power(np.int64(3)) is power(3)  # pyright: ignore
    assert float(power(3).curvature(2)) == 4  # pyright: ignore
    for p in ("3", None, True):
        with pytest.raises(TypeError, match=r"p: got .*; allowed: a number > 1"):
            power(p)  # pyright: ignore
    with pytest.raises(TypeError, match=r"p: got a traced value, .*; allowed: a number > 1, one for each potential"):
        jax.jit(lambda p: power(p).phi(1.0))(3.0)


def test_mirror_descent_in_the_euclidean_potential_is_gradient_descent(key):
    x = jax.random.normal(key, (3, 4))
    batch = Batch(x, jnp.ones(3))
    ends = [
        simulate(run, W, batch, steps=20)[0].params for run in (mirror(L, power(2), 0.05), gradient_descent(L, 0.05))
    ]
    np.testing.assert_array_equal(*ends)


def test_exponentiated_gradients_and_a_weight_of_zero():
    linear = Objective.of(lambda w, batch: w @ batch)
    g, w = jnp.array([1.0, 2.0, -3.0, 1.0]), W.at[3].set(0.0)
    state, _ = simulate(mirror(linear, signed_entropy(), 0.1), w, g, steps=1)
    np.testing.assert_allclose(state.params, w * jnp.exp(-0.1 * jnp.sign(w) * g), rtol=1e-6)


@pytest.mark.parametrize("name", POTENTIALS)
def test_mirror_descent_ends_at_the_bregman_projection(name, key, x64):
    x = jax.random.normal(key, (2, 4))
    y = x @ (1.3 * W)
    found = projection(POTENTIALS[name], jnp.asarray(W, float), x, y)
    assert found.residual < 1e-10
    rate = 0.05 if name == "entropy" else 0.02
    state, _ = simulate(mirror(L, POTENTIALS[name], rate), jnp.asarray(W, float), Batch(x, y), steps=20_000)
    np.testing.assert_allclose(state.params, found.w, atol=1e-7)


@pytest.mark.parametrize(("ratio", "grows"), [(0.95, False), (1.05, True)])
def test_mirror_descent_is_stable_below_two_over_eta_on_its_own_sharpness(ratio, grows, x64):
    """At the minimum w = 1.5 of h (w - 1.5)^2/2 its P is phi'' = 2 w = 3, so that P^-1 H = h/3."""
    h, eta = 2.0, ratio * 2 / (2.0 / 3)
    run = mirror(Objective.of(lambda w, batch: h * jnp.sum((w - 1.5) ** 2) / 2), power(3), eta)
    _, record = simulate(
        run, jnp.array([1.5001]), None, steps=40,
        train=[lambda w, batch: {"off": jnp.abs(w[0] - 1.5)}, observe.preconditioned_sharpness()],
    )  # fmt: skip
    np.testing.assert_allclose(record.values["preconditioned_sharpness"][0], h / 3, rtol=1e-3)
    assert (record.values["off"][-1] > record.values["off"][0]) == grows


@pytest.mark.usefixtures("as_users_meet_it")
def test_what_mirror_descent_refuses():
    with pytest.raises(TypeError, match=r"potential: got float; allowed: a Potential, e\.g\. geometry.power"):
        mirror(L, 2.0, 0.1)  # pyright: ignore
    with pytest.raises(TypeError, match=r"params.*complex.*real floating"):
        mirror(L, power(2), 0.1).init(W * 1j)


def norm_of(t, norm):
    return {
        "spectral": lambda: np.linalg.norm(t, 2), "max": lambda: np.abs(t).max(), "frobenius": lambda: np.linalg.norm(t)
    }[norm]()  # fmt: skip


@pytest.mark.parametrize("norm", NORMS)
def test_the_dual_is_attained_and_bounds_every_direction(norm, key, x64):
    g = jax.random.normal(key, (5, 3))
    found = dual(g, norm)
    np.testing.assert_allclose(norm_of(found.direction, norm), 1.0, rtol=1e-12)
    np.testing.assert_allclose(jnp.sum(g * found.direction), found.norm, rtol=1e-12)
    for d in np.random.default_rng(0).normal(size=(200, 5, 3)):
        assert np.sum(np.asarray(g) * d) <= found.norm * norm_of(d, norm) * (1 + 1e-12)


def test_shampoo_without_averages_and_muon_are_the_spectral_dual(key, x64):
    g = jax.random.normal(key, (6, 4))
    left, right = (jnp.linalg.pinv(one, hermitian=True) for one in (g @ g.T, g.T @ g))

    def root(matrix):
        values, vectors = jnp.linalg.eigh(matrix)
        return (vectors * jnp.maximum(values, 0) ** 0.25) @ vectors.T

    np.testing.assert_allclose(root(left) @ g @ root(right), dual(g, "spectral").direction, atol=1e-6)
    params, matrix = {"w": g}, {"w": optax.contrib.MuonDimensionNumbers()}
    muon = optax.contrib.scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=matrix)
    by_optax = muon.update(params, muon.init(params), params)[0]["w"]
    np.testing.assert_allclose(dual(g, "spectral", exact=False).direction, by_optax, atol=1e-7)
    threshold = stability.muon_threshold(1.0, g)  # 2 |G|_* / eta
    np.testing.assert_allclose(2 * dual(g, "spectral").norm, threshold, rtol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("exact", [True, False])
def test_what_a_gradient_does_not_say_does_not_move(norm, exact):
    none = dual(jnp.zeros((3, 2)), norm, exact=exact)
    assert none.norm == 0
    assert not jnp.any(none.direction)
    assert dual(jnp.zeros((3, 0)), norm, exact=exact).norm == 0
    assert dual(-3.0, norm, exact=exact) == (3, -1)  # pyright: ignore
    one = dual(jnp.zeros((3, 2)).at[1, 0].set(1e-30), norm, exact=exact).direction
    assert jnp.count_nonzero(jnp.abs(one) > 1e-3) == 1


@pytest.mark.usefixtures("as_users_meet_it")
def test_norm_dual_in_a_chain_is_sign_descent_and_keeps_forms():
    params = {"kernel": jnp.ones((2, 3, 4), jnp.bfloat16), "bias": jnp.arange(4.0) - 1}
    for optimizer, reference in (
        (optax.chain(norm_dual("max", unit=True), optax.scale_by_learning_rate(0.1)), optax.sign_sgd(0.1)),
        (optax.chain(norm_dual("frobenius"), optax.scale_by_learning_rate(0.1)), optax.sgd(0.1)),
    ):
        updates = [one.update(params, one.init(params), params)[0] for one in (optimizer, reference)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2), *updates)
    spectral = norm_dual("spectral", unit=True).update(params, optax.EmptyState())[0]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), spectral) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), params
    )
    np.testing.assert_allclose(jnp.linalg.norm(spectral["bias"]), 1.0, rtol=1e-6)  # one column
    half = norm_dual("max").update(jnp.array([60_000.0, -60_000.0, 0.0], jnp.float16), optax.EmptyState())[0]
    np.testing.assert_array_equal(half, [65504, -65504, 0])  # its largest number
    with pytest.raises(TypeError, match="gradient: got complex64; allowed: real floating numbers"):
        dual(jnp.ones((2, 2)) * 1j, "max")
    with pytest.raises(ValueError, match="norm: got 'nuclear'; allowed: spectral, max, frobenius"):
        norm_dual("nuclear")  # pyright: ignore


def test_the_predicted_decrease_is_that_of_the_best_step_of_a_quadratic(key, x64):
    x = jax.random.normal(key, (7, 4))
    batch, w = Batch(x, jnp.ones((7, 2))), {"w": jax.random.normal(key, (4, 2))}
    quadratic = Objective(lambda params, x: x @ params["w"], lambda f, y: jnp.sum((f - y) ** 2))
    _, readings = observe.dual_norms().update((), View(w, batch, quadratic))
    for norm in NORMS:
        found = dual(jax.grad(quadratic)(w, batch)["w"], norm)
        step = readings[f"dual_norm/{norm}/w"] / readings[f"curvature/{norm}/w"]
        losses = [quadratic({"w": w["w"] - t * step * found.direction}, batch) for t in (0.99, 1.0, 1.01)]
        np.testing.assert_allclose(quadratic(w, batch) - losses[1], readings[f"predicted_decrease/{norm}/w"])
        assert losses[1] < min(losses[0], losses[2])


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("3", -1.0),
        ("entropy", 1.0),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("2", 0.0), ("1.5", 0.5))),
    ],
)
def test_the_slope_names_the_geometry_and_dtheta_is_gaussian_in_it(name, slope, key, x64):
    """Small Gaussian dtheta, independent of the start: the slope of ln|dw| on ln|w_0| is that of -ln phi''."""
    kw, kh, ks = jax.random.split(key, 3)
    potential, w0 = POTENTIALS[name], jnp.exp(0.5 * jax.random.normal(kw, (4000,)))
    w0 = w0 * jax.random.rademacher(ks, w0.shape)
    w = potential.inverse(potential.gradient(w0) + 1e-4 * jax.random.normal(kh, w0.shape), w0)
    read = observe.dual_gaussianity({"own": potential, "3": power(3)})
    _, readings = read.update(read.init(View({"w": w0}, None)), View({"w": w}, None))
    assert abs(readings["geometry_slope"] - slope) < 4 * readings["geometry_slope_error"]
    np.testing.assert_allclose(readings["geometry_slope_error"], 1.11 / 0.5 / 4000**0.5, rtol=0.1)  # sd of ln|N|: 1.11
    np.testing.assert_allclose(readings["geometry_slope/w"], readings["geometry_slope"])
    assert readings["dual_ks/own"] < 1.95 / 4000**0.5  # 1 in 1000
    if name != "3":
        assert readings["dual_ks/3"] > 0.03


@pytest.mark.usefixtures("as_users_meet_it")
def test_weights_that_stand_still_say_nothing():
    read = observe.dual_gaussianity()
    _, readings = read.update(read.init(View(jnp.ones(20), None)), View(jnp.ones(20), None))
    assert all(np.isnan(value) for name, value in readings.items() if name != "geometry_slope_error")
    with pytest.raises(TypeError, match="potentials: got float as 'a'; allowed: Potentials by name"):
        observe.dual_gaussianity({"a": 2.0})


def test_a_frozen_leaf_says_nothing_of_the_others():
    w0, read = jax.random.normal(jax.random.key(0), (50,)), observe.dual_gaussianity()

    def distance(still):
        moved = {"a": w0 + 0.01 * w0**2, **still}
        return float(read.update(read.init(View({"a": w0, **still}, None)), View(moved, None))[1]["dual_ks/2"])

    assert distance({"b": jnp.zeros(10)}) == distance({})


def test_potentials_and_projections_at_zero():
    """|w|^1.5 / 1.5 has an infinite slope at 0; w = x^2 nu^2 with nu^2 = y / sum x^3."""
    assert power(1.5).curvature(jnp.zeros(1)).tolist() == [jnp.inf]
    assert power(3).curvature(jnp.array([0.0, 2.0])).tolist() == [0, 4]
    x = jnp.array([[1.0, 2.0, 0.5]])
    found = projection(power(1.5), jnp.zeros(3), x, jnp.array([3.0]))
    np.testing.assert_allclose(found.w, x[0] ** 2 * 3 / jnp.sum(x**3), rtol=1e-4)
    np.testing.assert_array_equal(projection(power(1.5), jnp.zeros(3), x, jnp.array([3])).w, found.w)
    with pytest.raises(ValueError, match=r"x: got shape \(4, 3\) with y \(4,\), start \(3,\); allowed: .* P <= D"):
        projection(power(1.5), jnp.zeros(3), jnp.ones((4, 3)), jnp.ones(4))
