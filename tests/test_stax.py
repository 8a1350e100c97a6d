"""Analytic kernels: stored answers of neural-tangents, float32 against float64, gradients, Monte Carlo, bad input."""

import importlib
import importlib.util
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynamics as nt
from dynamics import stax
from dynamics.stax.activations.quadrature import gaussian_panels
from dynamics.stax.kernel import Kernel
from dynamics.stax.layers import kernel_layer

_PLACE = pathlib.Path(__file__).parent / "fixtures" / "make_stax.py"
_SPEC = importlib.util.spec_from_file_location("make_stax", _PLACE)
make_stax = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make_stax)

QUICK = ("Relu", "ABRelu", "Erf", "Gelu", "Sin", "Rbf", "Sign", "Gabor", "Polynomial", "RectifiedMonomial", "standard")
QUICK += ("residual", "FanInProd", "FanInConcat", "Dropout", "Flatten", "Conv_circular", "AvgPool_edges", "attention")
STORED = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in make_stax.NETWORKS]


def mlp(activation, depth=2):
    return stax.serial(
        *[layer for _ in range(depth) for layer in (stax.Dense(64, 1.3, 0.2), activation)], stax.Dense(1)
    )


def _parallel(a, b):
    unit_a, unit_b = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b))
    return unit_a @ unit_b.T > 1 - 1e-9


@pytest.mark.parametrize("name", STORED)
def test_equals_stored_reference(name, x64):
    network, shape = make_stax.NETWORKS[name]
    x1, x2 = make_stax.inputs(shape)
    kernel_fn = network(stax).kernel
    across = jax.jit(lambda a, b: kernel_fn(a, b, ("nngp", "ntk")))(x1, x2)
    inside = jax.jit(lambda a: kernel_fn(a, None, ("nngp", "ntk")))(x1)
    with np.load(make_stax.STORE) as store:
        for which, kernels in (("x2", across), ("none", inside)):
            for get in ("nngp", "ntk"):
                stored = store[f"{name}/{get}_{which}"]
                # The reference has NaN at some coincident points; ours is finite there.
                known, found = np.isfinite(stored), np.asarray(getattr(kernels, get))
                assert np.all(np.isfinite(found))
                if name == "Sign":
                    # Two steps turn the reference's rounding at parallel inputs into 5e-5; ours is exact there.
                    known &= ~_parallel(x1, x2 if which == "x2" else x1)
                # 1e-6 relative, entry by entry; the floor is the rounding of entries that cancel to zero.
                floor = 1e-12 * np.max(np.abs(stored[known]))
                np.testing.assert_allclose(found[known], stored[known], rtol=1e-6, atol=floor)


@pytest.mark.parametrize("depth", [3, 30])
def test_float32_within_1e5_of_float64(depth):
    key = jax.random.key(1)
    with jax.enable_x64(True):
        x = jax.random.normal(key, (12, 40), jnp.float64)
        near = x + 1e-3 * jax.random.normal(jax.random.key(2), x.shape, jnp.float64)
        x = np.asarray(jnp.concatenate([x, near, x[:2], 3 * x[:2]]).astype(jnp.float32))
        layers = [layer for _ in range(depth) for layer in (stax.Dense(8, 2**0.5, 0.05), stax.Relu())]
        kernel_fn = stax.serial(*layers, stax.Dense(1)).kernel
        exact = kernel_fn(jnp.asarray(x, jnp.float64), None, ("nngp", "ntk"))
    with jax.enable_x64(False):
        found = kernel_fn(x, None, ("nngp", "ntk"))
        assert found.ntk.dtype == jnp.float32
        across = kernel_fn(x, x, "ntk")
    for name in ("nngp", "ntk"):
        reference = np.asarray(getattr(exact, name))
        scale = np.sqrt(np.outer(np.diag(reference), np.diag(reference)))
        assert np.max(np.abs(getattr(found, name) - reference) / scale) < 1e-5
    assert np.max(np.abs(across - np.asarray(exact.ntk)) / scale) < 1e-5
    # Positive semi-definite to the rounding of a symmetric eigenvalue solver.
    values = np.linalg.eigvalsh(np.asarray(found.ntk, np.float64))
    assert values[0] > -1e-5 * values[-1]


@pytest.mark.parametrize("activation", [stax.Erf, stax.Gelu, stax.Sin, stax.Cos, stax.Gaussian, stax.Gabor])
def test_float32_within_1e5_of_float64_at_any_norm(activation):
    """Small norms, norms far beyond the activation's own scale, near duplicates of them: nothing cancels."""
    s = np.geomspace(0.01, 100, 5).astype(np.float32)
    s = np.concatenate([s, s * np.float32(1.001)])
    versine = np.array([0, 1e-6, 1e-4, 1e-2, 0.3, 1, 1.7], np.float32)
    rows = np.repeat(s, len(versine))
    gap = np.tile(versine, len(s))[:, None] * np.outer(rows, s)

    @jax.jit
    def kernels(gap, rows, columns):
        axes = {"is_gaussian": True, "shape1": (1, 1), "shape2": (1, 1)}
        before = Kernel(gap, jnp.ones_like(gap), rows**2, columns**2, **axes)
        after = kernel_layer(activation()).propagate(before)
        return after.nngp, after.nngp + after.ntk * before.nngp

    with jax.enable_x64(True):
        exact = [np.asarray(k) for k in kernels(*(a.astype(np.float64) for a in (gap, rows, s)))]
    with jax.enable_x64(False):
        found = kernels(gap, rows, s)
    for reference, value in zip(exact, found, strict=True):
        # Rows of versine 0 hold the diagonal.
        own = np.sqrt(np.diag(reference[:: len(versine)]))
        assert np.max(np.abs(value - reference) / np.outer(np.repeat(own, len(versine)), own)) < 1e-5


@pytest.mark.parametrize("activation", [stax.Relu(), stax.Erf(), stax.Gelu(), stax.Tanh(), stax.Sign()])
def test_gradients_are_finite_at_coincident_points(activation, precision):
    kernel_fn = mlp(activation).kernel
    x = jax.random.normal(jax.random.key(0), (3, 4))
    x = jnp.concatenate([x, x[:1], 2 * x[:1], jnp.zeros((1, 4))])

    @jax.jit
    def gradients(x):
        across = jax.grad(lambda x, y: jnp.sum(kernel_fn(x, y, "ntk")))(x, x)
        return across, jax.grad(lambda x: jnp.sum(kernel_fn(x, None, "ntk")))(x)

    for gradient in gradients(x):
        assert bool(jnp.all(jnp.isfinite(gradient)))


def test_gradient_to_hyperparameters_equals_difference(x64):
    x = jax.random.normal(jax.random.key(0), (4, 20))

    @jax.jit
    def value(w):
        return jnp.sum(stax.serial(stax.Dense(8, w, 0.3), stax.Relu(), stax.Dense(1, w)).kernel(x, None, "ntk"))

    step = 1e-5
    slope = (value(1.2 + step) - value(1.2 - step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(value))(1.2), slope, rtol=1e-8)


def test_jit_and_vmap_equal_loop(x64):
    kernel_fn = mlp(stax.Relu()).kernel
    x = jax.random.normal(jax.random.key(0), (3, 5, 20))
    looped = jnp.stack([kernel_fn(a, x[0], "ntk") for a in x])
    mapped = jax.jit(jax.vmap(lambda a: kernel_fn(a, x[0], "ntk")))(x)
    np.testing.assert_allclose(mapped, looped, rtol=1e-13)


@pytest.mark.parametrize("activation", [stax.Erf(), stax.Sin(), stax.Gaussian(), stax.Gabor()])
def test_coincident_inputs_stay_so_in_a_chaotic_network(activation):
    """float32: a gap of rounding would grow by chi > 1 each layer; here it is exactly 0 after 1000 of them."""
    x = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    network = stax.serial(stax.Dense(1, 3.0), stax.repeat(stax.serial(activation, stax.Dense(1, 1.7, 0.1)), 1000))
    gap = jax.jit(lambda x: network.kernel(x, None).gap)(np.concatenate([x, x[:1]]))
    np.testing.assert_array_equal([*np.diag(gap), gap[0, 3], gap[3, 0]], 0)


def test_hermite_series_equals_closed_form_and_bounds_its_error(x64):
    x = jax.random.normal(jax.random.key(0), (6, 5))
    closed, series = (
        mlp(stax.Erf()).kernel(x, None, "ntk"),
        mlp(stax.Series(jax.scipy.special.erf, terms=96)).kernel(x, None, "ntk"),
    )
    np.testing.assert_allclose(series, closed, rtol=1e-6)
    few, many = (stax.hermite_series(jnp.tanh, jnp.array([0.5, 1.0, 2.0]), terms) for terms in (16, 96))
    missing = jnp.sum(many.coefficients[:, 16:] ** 2, -1)
    assert bool(jnp.all(few.tail >= missing * (1 - 1e-6)))


@pytest.mark.parametrize("cosine", [0.5, 0.9, 1.0])
def test_a_steep_activation_is_right_or_refused(cosine, x64):
    """tanh at variance 10 against a product rule; what a series cannot hold, at variance 100, is NaN."""
    net = stax.serial(stax.Dense(1), stax.Tanh())

    def kernels(q):
        one, two = jnp.array([[1.0, 0.0]]), jnp.array([[cosine, (1 - cosine**2) ** 0.5]])
        return (k.item() for k in net.kernel((2 * q) ** 0.5 * one, (2 * q) ** 0.5 * two, ("nngp", "ntk")))

    nodes, weights = gaussian_panels(240, 12)
    u, v = 10**0.5 * nodes, 10**0.5 * (cosine * nodes[:, None] + (1 - cosine**2) ** 0.5 * nodes)
    nngp, ntk = kernels(10.0)
    np.testing.assert_allclose(nngp, (weights * np.tanh(u)) @ (np.tanh(v) @ weights), rtol=1e-6)
    slopes = (weights / np.cosh(u) ** 2) @ (np.cosh(v) ** -2.0 @ weights)
    np.testing.assert_allclose(ntk, 10 * cosine * slopes, rtol=1e-4)  # the tail at c = .9
    assert np.all(np.isnan([*kernels(100.0)]))


def test_mup_output_variance_and_ntk_at_finite_width(x64):
    # Linear network: the kernels are exact in expectation at any width, so the sampled mean must agree.
    model = stax.serial(*[stax.Dense(n, 1.1, 0.3, parameterization="mup") for n in (32, 32, 1)])
    x = jax.random.normal(jax.random.key(0), (3, 4))
    names = ("nngp", "ntk", "nngp_standard_error", "ntk_standard_error")
    sampled = nt.monte_carlo_kernel_fn(model.init, model.apply, jax.random.key(1), 400)(x, None, names)
    exact = model.kernel(x)
    assert np.max(np.abs(exact.nngp - sampled.nngp) / sampled.nngp_standard_error) < 4
    assert np.max(np.abs(exact.ntk - sampled.ntk) / sampled.ntk_standard_error) < 4


def test_depth_as_a_scan(x64):
    layer = stax.serial(stax.Relu(), stax.Dense(8, 2**0.5))
    x = jax.random.normal(jax.random.key(0), (3, 4))
    looped = stax.serial(stax.Dense(8), *[layer] * 6).kernel(x, None, "ntk")
    np.testing.assert_allclose(stax.serial(stax.Dense(8), stax.repeat(layer, 6)).kernel(x, None, "ntk"), looped)
    deep = stax.serial(stax.Dense(8), stax.repeat(layer, 10_000)).kernel(x, None, "nngp")
    # All correlations of a ReLU network at its critical scale go to 1 (Hayou et al. 2019: 1 - c ~ 9 pi^2 / (2 L^2)).
    s = np.sqrt(np.diag(deep))
    np.testing.assert_allclose(1 - (deep / s / s[:, None])[0, 1], 9 * np.pi**2 / 2 / 1e4**2, rtol=0.01)


@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_batch_equals_whole(size, x64):
    x, y = (jax.random.normal(jax.random.key(i), (n, 5)) for i, n in ((0, 7), (1, 4)))
    kernel_fn = mlp(stax.Relu()).kernel
    batched = nt.batch(kernel_fn, batch_size=size)
    for args in ((x, None), (x, y)):
        whole, tiled = kernel_fn(*args), batched(*args)
        assert jax.tree.structure(whole) == jax.tree.structure(tiled)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), whole, tiled)


def test_batch_of_a_kernel_equals_whole(x64):
    x, head = jax.random.normal(jax.random.key(0), (4, 5)), stax.Dense(8, 1.2, 0.1).kernel
    before = jax.jit(stax.Dense(8).kernel)(x)
    found = nt.batch(head, batch_size=2)(before, None, "ntk")
    np.testing.assert_allclose(found, jax.jit(head)(before).ntk, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_batch_on_several_devices():
    code = """
import jax, numpy as np, dynamics as nt
from dynamics import stax
jax.config.update("jax_enable_x64", True)  # entries that nearly cancel have few digits in float32
kernel_fn = stax.serial(stax.Dense(8), stax.Relu(), stax.Dense(1)).kernel
x = jax.random.normal(jax.random.key(0), (11, 5))
assert jax.local_device_count() == 3
tiled = nt.batch(kernel_fn, 4)(x, None, "ntk")
np.testing.assert_allclose(tiled, kernel_fn(x, None, "ntk"), rtol=1e-10)
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin"}
    subprocess.run([sys.executable, "-c", code], check=True, env=flags, timeout=300)


def test_stax_loads_nothing_heavy():
    code = """
import sys
from dynamics import stax
heavy = {"matplotlib", "tyro", "sklearn", "flax", "orbax", "xarray", "tensorflow", "optax", "dynamics.runs"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_input_coordinates_select_pairs(x64):
    conv = stax.serial(stax.Conv(4, (3, 3), None, "SAME", 1.3, 0.1), stax.Relu(), stax.Conv(4, (2, 2)))
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 2))
    alone, across = jax.jit(lambda x: (conv.kernel(x, None, "ntk"), conv.kernel(x, x, "ntk")))(x)
    np.testing.assert_allclose(alone, across, rtol=1e-12, atol=1e-12)


BAD = [
    (lambda: stax.serial(), "serial"),
    (lambda: stax.Dense(0), "out_dim"),
    (lambda: stax.Dense(3, parameterization="abc"), "parameterization"),
    (lambda: stax.Dropout(0.0), "rate"),
    (lambda: stax.Conv(3, (2, 2), padding="full"), "padding"),
    (lambda: stax.GlobalSelfAttention(1, 1, 1, 1, attention_mechanism="max"), "attention_mechanism"),
    (lambda: stax.Dense(1).kernel(jnp.ones((2, 3)), None, "ntkk"), "get"),
    (lambda: stax.Dense(1).kernel(jnp.ones((2, 3)), jnp.ones((2, 4))), "x2"),
    (lambda: stax.Dense(1).kernel(jnp.ones(3)), "x1"),
    (lambda: stax.Relu().kernel(jnp.ones((2, 3))), "Gaussian"),
    (lambda: stax.Conv(3, (5, 5)).kernel(jnp.ones((2, 3, 3, 1))), "window"),
    (lambda: stax.FanInSum().kernel(jnp.ones((2, 3))), "FanInSum"),
    (
        lambda: stax.GlobalSelfAttention(1, 1, 1, 1).kernel(jnp.ones((2, 3, 1)), diagonal_spatial=True),
        "diagonal_spatial",
    ),
    (lambda: stax.repeat(stax.Dense(4), 2).init(jax.random.key(0), (1, 3)), "shape"),
    (lambda: nt.batch(stax.Dense(1).kernel, -1), "batch_size"),
    (lambda: nt.monte_carlo_kernel_fn(*stax.Dense(2)[:2], jax.random.key(0), 0), "n_samples"),
    (lambda: stax.GlobalAvgPool().kernel(jnp.ones((10**3, 100, 100, 1))), "batch"),
]


@pytest.mark.parametrize(("call", "named"), BAD)
def test_bad_input_is_named_in_one_sentence(call, named):
    with pytest.raises(ValueError, match=named) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Bool", "Diagonal", "layer", "requires", "supports_masking"])
def test_names_that_are_not_offered_say_what_to_use(name):
    with pytest.raises(AttributeError, match=f"neural-tangents' {name}: [a-z]"):
        getattr(stax, name)
    assert not hasattr(stax, "Nonsense")


@pytest.mark.parametrize("layer", [stax.LeakyRelu, stax.Erf, stax.Rbf, stax.Sin])
def test_gradient_to_an_activation_parameter_equals_difference(layer, x64):
    x = jax.random.normal(jax.random.key(0), (3, 5))

    def value(a):
        return jnp.sum(stax.serial(stax.Dense(8), layer(a), stax.Dense(1)).kernel(x, None, "ntk"))

    step = 1e-5
    # Central difference: error step^2 and eps / step, both near 1e-10.
    slope = (value(0.7 + step) - value(0.7 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(value)(0.7), slope, rtol=1e-7)


def test_nesting_changes_no_kernel(key):
    """The width behind a ``FanInConcat``, which 'standard' layers read, survives a ``serial`` around it."""
    last = stax.Dense(4, parameterization="standard")
    branches = (stax.FanOut(2), stax.parallel(stax.Dense(3), stax.Dense(5)), stax.FanInConcat())
    x = jax.random.normal(key, (3, 6))
    flat, nested = stax.serial(*branches, last), stax.serial(stax.serial(*branches), last)
    np.testing.assert_allclose(nested.kernel(x, None, "ntk"), flat.kernel(x, None, "ntk"), rtol=1e-6)


CALLS = [("nngp", True), ("ntk", False), (("nngp", "ntk"), True), (None, False)]


@pytest.mark.parametrize(("get", "alone"), CALLS)
def test_a_kernel_of_arrays_is_one_program_outside_of_jit(get, alone, monkeypatch):
    """One compilation for a call and none for the next; a longer network goes operation by operation, to the same."""
    layers = [stax.Conv(1, (3,), padding="SAME", b_std=0.1), stax.Relu(), stax.Flatten(), stax.Dense(1)]
    x1, x2 = (jax.random.normal(jax.random.key(n), (n, 5, 2)) for n in (3, 4))
    at = (x1, None if alone else x2, get)
    kernel_fn, compiled = stax.serial(*layers).kernel, []

    def heard(name, *_, **about):
        if "backend_compile" in name:
            compiled.append(about.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        found = kernel_fn(*at)
        assert len(compiled) == 1, compiled
        kernel_fn(*at)
        assert len(compiled) == 1, compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    monkeypatch.setattr(importlib.import_module("dynamics.stax.layers.layer"), "_LONGEST", 0)
    longer = stax.serial(*layers).kernel(*at)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6), found, longer)
