"""The NTK observable against a plain computation along a run; similarity measures; the matrix-free operator."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from empirical_zoo import dense_once, fast_jit, inputs, mlp, normal

from dynamics.empirical import (
    class_blocks,
    empirical_ntk_and_vjp_fn,
    empirical_ntk_fn,
    empirical_ntk_parts_fn,
    flat_kernel,
    ntk_effective_dimension,
    ntk_eigenpairs,
    ntk_label_alignment,
    ntk_operator,
    ntk_trace,
)
from dynamics.evolve import every, gradient_descent, simulate
from dynamics.losses import half_mse, mse
from dynamics.observe import ntk
from dynamics.statistics import centred, effective_dimension, kernel_alignment, kernel_distance
from dynamics.types import Batch, Objective, View

LINEAR = Objective(lambda w, x: x @ w, half_mse)


@pytest.fixture
def task(x64):
    f, params, shape = mlp()
    x = inputs(shape, 6)
    return f, params, Batch(x, jnp.sin(x[:, :3]))


@pytest.mark.parametrize("outputs", ["mean", "full"])
def test_readings_along_a_run_equal_a_plain_computation(task, outputs, key):
    f, params, batch = task
    run = gradient_descent(Objective(f, half_mse), 0.1)
    read = ntk(outputs=outputs, gram=True, spectrum=2, modes=2, interval=0.1)
    options = {"train": read, "steps": 3, "record_at": every(1, 3), "key": key}
    state, record = fast_jit(lambda p: simulate(run, p, batch, **options))(params)
    kernels = record.values["ntk"]
    last = state.params
    full = dense_once(f, last, batch.x)
    expected = jnp.einsum("nmcc->nm", full) / 3 if outputs == "mean" else flat_kernel(full)
    np.testing.assert_allclose(kernels[-1], expected, rtol=1e-10, atol=1e-12)
    y = batch.y if outputs == "mean" else batch.y.reshape(-1, 1)
    close = dict(rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(record.values["alignment"][-1], kernel_alignment(kernels[-1], y @ y.T), **close)
    np.testing.assert_allclose(
        record.values["kernel_distance"], [kernel_distance(k, kernels[0]) for k in kernels], **close
    )
    np.testing.assert_allclose(record.values["start_alignment"][0], 1.0, **close)
    speed = [np.nan] + [kernel_distance(b, a) / 0.1 for a, b in itertools.pairwise(kernels)]
    np.testing.assert_allclose(record.values["kernel_velocity"], speed, **close)
    values = jnp.linalg.eigvalsh(kernels[-1])
    # Ritz values are below the truth by at most their residual (Weyl)
    gap = jnp.abs(record.values["ntk_eigenvalues"][-1] - values[::-1][:2])
    assert bool(jnp.all(gap <= record.values["ntk_eigenvalue_residuals"][-1] + 1e-12 * values[-1]))
    loss = record.values["mode_loss"].sum(-1) + record.values["mode_loss_rest"]
    np.testing.assert_allclose(loss[-1], mse(f(last, batch.x), batch.y), **close)
    modes = jnp.linalg.eigh(kernels[0])[1][:, ::-1][:, :2]
    error = (f(last, batch.x) - batch.y).reshape(modes.shape[0], -1)
    np.testing.assert_allclose(record.values["mode_loss"][-1], ((modes.T @ error) ** 2).sum(-1) / 6, **close)


def test_modes_of_a_linear_model_decay_at_their_eigenvalues(x64, key):
    x = inputs((3,), 5)
    batch = Batch(x, x @ jnp.ones((3, 1)) + 0.3)
    run, read = gradient_descent(LINEAR, 0.05), ntk(modes=3, labels=False)
    _, record = simulate(run, jnp.zeros((3, 1)), batch, train=read, steps=20, key=key)
    eigenvalues = jnp.linalg.eigvalsh(x @ x.T)[::-1][:3]
    decay = (1 - 0.05 * eigenvalues / 5) ** 40
    np.testing.assert_allclose(
        record.values["mode_loss"][1], record.values["mode_loss"][0] * decay, rtol=1e-9, atol=1e-15
    )


@pytest.mark.parametrize("bad", [dict(outputs="some"), dict(spectrum=-1), dict(modes=-2), dict(interval=0.0)])
def test_bad_arguments_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ntk(**bad)


def test_more_eigenvalues_than_there_are_and_unknown_readings_are_refused():
    batch = Batch(jnp.eye(3), jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="spectrum: got 4"):
        ntk(spectrum=4).init(View(jnp.ones((3, 1)), batch, LINEAR))
    with pytest.raises(TypeError, match="spectra"):
        ntk(spectra=1)


def test_similarity_identities(precision, key):
    one, two = (a @ a.T for a in jax.random.normal(key, (2, 5, 3)))
    h = jnp.eye(5) - 1 / 5
    eps = 200 * jnp.finfo(one.dtype).eps
    np.testing.assert_allclose(centred(one), h @ one @ h, atol=eps * 10)
    np.testing.assert_allclose(kernel_alignment(one, 7 * one), 1, rtol=eps)
    np.testing.assert_allclose(kernel_alignment(one, two), kernel_alignment(two + 3, 2 * one + 1), rtol=eps * 10)
    assert float(kernel_alignment(one, jnp.ones((5, 5)))) == 0
    np.testing.assert_allclose(kernel_distance(3 * one, one), 2, rtol=eps)
    values = jnp.linalg.eigvalsh(one)
    dimension = jnp.trace(one @ jnp.linalg.inv(one + 0.5 * jnp.eye(5)))
    np.testing.assert_allclose(effective_dimension(values, 0.5), dimension, rtol=eps * 10)


def test_parts_sum_to_the_whole_and_weights_act_in_parameter_space(task):
    f, params, batch = task
    whole = fast_jit(empirical_ntk_fn(f, trace_axes=()))(batch.x, None, params)
    parts = fast_jit(empirical_ntk_parts_fn(f, trace_axes=()))(batch.x, None, params)
    assert set(parts) == {"w/0", "w/1", "w/2", "b/0", "b/1"}
    np.testing.assert_allclose(sum(parts.values()), whole, rtol=1e-11, atol=1e-13)
    biases = fast_jit(empirical_ntk_parts_fn(f, lambda path: "bias" if path[0] == "b" else None, trace_axes=()))
    np.testing.assert_allclose(
        biases(batch.x, None, params)["bias"], parts["b/0"] + parts["b/1"], rtol=1e-12, atol=1e-14
    )

    weights = jax.tree.map(lambda leaf: 0.5 + leaf**2, params)
    root = jax.tree.map(jnp.sqrt, weights)

    def rescaled(q, x):
        return f(jax.tree.map(lambda a, r, p: p + r * (a - p), q, root, params), x)

    of_all = fast_jit(empirical_ntk_parts_fn(f, lambda path: "all", trace_axes=(), weights=weights))
    weighted = of_all(batch.x, None, params)
    np.testing.assert_allclose(weighted["all"], dense_once(rescaled, params, batch.x), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="weights"):
        empirical_ntk_parts_fn(f, weights=params["w"])(batch.x, None, params)


def test_class_blocks_are_means_over_pairs(x64):
    kernel = normal(0, 6, 6)
    labels = jnp.array([0, 1, 1, 0, 2, 1])
    blocks = class_blocks(kernel, labels, 4)
    np.testing.assert_allclose(blocks[0, 1], kernel[jnp.array([0, 3])][:, jnp.array([1, 2, 5])].mean(), rtol=1e-12)
    assert float(jnp.abs(blocks[3]).max()) == 0


@pytest.mark.parametrize("batch_size", [None, 4, 6])
def test_operator_equals_the_dense_kernel(task, batch_size):
    f, params, batch = task
    operator = ntk_operator(f, params, batch.x, batch_size=batch_size)
    kernel = flat_kernel(dense_once(f, params, batch.x))
    np.testing.assert_allclose(jax.vmap(operator.matvec)(jnp.eye(18)), kernel, rtol=1e-9, atol=1e-11)


def test_matrix_free_estimates_hold_the_dense_values(task, key):
    f, params, batch = task
    operator = ntk_operator(f, params, batch.x, batch_size=4)
    kernel = flat_kernel(dense_once(f, params, batch.x))
    values = jnp.linalg.eigvalsh(kernel)[::-1]
    y = batch.y.reshape(-1, 1)
    found = {
        "trace": (ntk_trace(operator, key, 64), jnp.trace(kernel)),
        "alignment": (ntk_label_alignment(operator, batch.y, key, probes=64), kernel_alignment(kernel, y @ y.T)),
        "dimension": (
            ntk_effective_dimension(operator, 0.1, key, probes=64, steps=18),
            effective_dimension(values, 0.1),
        ),
    }
    for estimate, truth in found.values():
        assert abs(float(estimate.value - truth)) <= 4 * float(estimate.error)  # 4 standard errors
    for method in ("dense", "matrix-free", "auto"):
        pairs = ntk_eigenpairs(f, params, batch.x, 3, key, method=method, tolerance=1e-8)
        np.testing.assert_allclose(pairs.values, values[:3], rtol=1e-7)
        vectors, dense = np.asarray(pairs.vectors), np.asarray(kernel)
        measured = np.linalg.norm(vectors @ dense - np.asarray(pairs.values)[:, None] * vectors, axis=-1)
        np.testing.assert_allclose(pairs.residuals, measured, atol=1e-6 * float(values[0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, p, x, key: ntk_operator(f, p, x, batch_size=0), "batch_size: got 0"),
        (lambda f, p, x, key: ntk_operator(lambda p, x: f(p, x - x.mean(0)), p, x, batch_size=2), "mixes the samples"),
        (lambda f, p, x, key: ntk_operator(f, p, x[:0]), "x: got no samples"),
        (
            lambda f, p, x, key: ntk_eigenpairs(f, p, x, 7, key, method="dense"),
            r"k: got 7; allowed: an integer in \[1, 3",
        ),
        (lambda f, p, x, key: ntk_eigenpairs(f, p, x, 1, key, method="lanczos"), "method: got 'lanczos'"),
        (lambda f, p, x, key: ntk_effective_dimension(ntk_operator(f, p, x), 0.0, key), "ridge: got 0.0"),
        (lambda f, p, x, key: ntk_label_alignment(ntk_operator(f, p, x), jnp.ones(5), key), "y: got 5 entries"),
        (lambda f, p, x, key: class_blocks(jnp.eye(3), jnp.arange(2), 3), r"labels: got shape \(2,\)"),
    ],
)
def test_matrix_free_arguments_are_named(call, message, key):
    with pytest.raises(ValueError, match=message):
        call(lambda p, x: x @ p, jnp.ones((3, 1)), jnp.eye(3), key)


def test_leaves_that_are_no_floats_are_constants():
    x, params = jnp.eye(3), {"w": jnp.ones((3, 2)), "times": jnp.int32(2)}
    operator = ntk_operator(lambda p, x: x @ p["w"] * p["times"], params, x, batch_size=2)
    np.testing.assert_allclose(jax.vmap(operator.matvec)(jnp.eye(6)), 4 * jnp.eye(6))
    both = empirical_ntk_and_vjp_fn(lambda p, x: x @ p["w"] * p["times"], memory=1)(x, params)
    gradient = both.pull(jnp.ones((3, 2)))
    assert gradient["times"].dtype == jnp.int32
    np.testing.assert_allclose(gradient["w"], 2 * jnp.ones((3, 2)))
