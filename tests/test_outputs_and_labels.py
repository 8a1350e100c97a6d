"""Outputs beyond [n, c], class labels, integer and masked targets: the same number, or one sentence, everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from empirical_zoo import dense_once, inputs, normal

from dynamics.empirical import flat_kernel
from dynamics.evolve import gradient_descent, kernel_descent, simulate
from dynamics.losses import accuracy, cross_entropy, half_mse, hinge, logistic, mse
from dynamics.observe import accuracy as accuracy_read
from dynamics.observe import ntk, ntk_of_state
from dynamics.statistics import kernel_alignment, kernel_distance, label_alignment
from dynamics.types import Batch, Objective, View

N, T, V = 5, 3, 2
P = {"w": normal(0, 4, 6), "v": normal(1, 6, T * V)}


def sequence(p, x):
    return jnp.reshape(jnp.tanh(x @ p["w"]) @ p["v"], (x.shape[0], T, V))


def tree(p, x):
    f = sequence(p, x)
    return {"a": f[:, 0], "b": (jnp.sin(f[:, 1:]),)}


def flat(p, x):
    return jnp.concatenate([jnp.reshape(leaf, (x.shape[0], -1)) for leaf in jax.tree.leaves(tree(p, x))], 1)


def read(f, y, p=P, **options):
    x = inputs((4,), N)
    observable = ntk(**options)

    @jax.jit
    def values(p, batch):
        start = View(p, batch, Objective(f, lambda f, y: jnp.zeros(())))
        moved = start._replace(params=jax.tree.map(lambda leaf: 1.2 * leaf, p))
        memory, _ = observable.update(observable.init(start), start)
        return observable.update(memory, moved)[1]

    return values(p, Batch(x, y))


@pytest.mark.parametrize("outputs", ["mean", pytest.param("full", marks=pytest.mark.slow)])
def test_scalars_are_over_all_outputs_of_arrays_and_trees(outputs, x64):
    x, y = inputs((4,), N), np.random.default_rng(0).normal(size=(N, T, V))
    options = dict(outputs=outputs, gram=True, spectrum=2, modes=2, interval=1.0)
    p = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), P)
    like = {"a": y[:, 0], "b": (y[:, 1:],)}
    for f, targets, rows in ((sequence, y, lambda p, x: sequence(p, x).reshape(N, -1)), (tree, like, flat)):
        found, expected = read(f, targets, p, **options), read(rows, y.reshape(N, -1), p, **options)
        full = dense_once(rows, jax.tree.map(lambda leaf: 1.2 * leaf, p), x)
        dense = jnp.einsum("nmcc->nm", full) / (T * V) if outputs == "mean" else flat_kernel(full)
        np.testing.assert_allclose(found["ntk"], dense, rtol=1e-9, atol=1e-11)
        for name, value in found.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-8, atol=1e-10, err_msg=name)
        assert found["ntk_trace"].shape == found["kernel_distance"].shape == ()


@pytest.mark.slow
def test_positions_are_read_one_by_one(x64):
    p = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), P)
    labels = jnp.asarray(np.random.default_rng(0).integers(0, V, (N, T)))
    found = read(sequence, labels, p, outputs="position", modes=2, spectrum=2)
    for t in range(T):
        one = read(lambda p, x, t=t: sequence(p, x)[:, t], labels[:, t], p, modes=2, spectrum=2)
        for name, value in found.items():
            np.testing.assert_allclose(value[t], one[name], rtol=1e-8, atol=1e-10, err_msg=name)
    with pytest.raises(ValueError, match="outputs: got 'position' for outputs"):
        read(lambda p, x: sequence(p, x)[:, 0], labels[:, 0], outputs="position")


@pytest.mark.slow
def test_class_labels_are_one_hot_rows_in_every_loss_and_reading(x64):
    rng = np.random.default_rng(1)
    labels, x = rng.integers(0, 3, N), jnp.asarray(rng.normal(size=(N, 4)))
    hot, f = np.eye(3)[labels], jnp.asarray(rng.normal(size=(N, 3)))
    kernel = x @ x.T
    for function in (mse, half_mse, cross_entropy, accuracy):
        np.testing.assert_allclose(function(f, labels), function(f, hot), rtol=1e-12)
    for centre in (True, False):
        one, two = (label_alignment(kernel, y, centre=centre) for y in (labels, hot))
        np.testing.assert_allclose(one, two, rtol=1e-12)
    L, w = Objective(lambda w, x: x @ w, cross_entropy), jnp.asarray(rng.normal(size=(4, 3)))
    records = []
    for y in (labels.astype(np.uint8), hot):
        run, batch = gradient_descent(L, 0.1), Batch(jnp.asarray(x), jnp.asarray(y))
        records.append(simulate(run, w, batch, train=[ntk(modes=1), accuracy_read()], steps=2)[1].values)
        state = simulate(kernel_descent(L, run_sgd()), (w, batch), batch, train=[ntk_of_state(modes=1)], steps=2)[1]
        records[-1] |= {f"state_{name}": value for name, value in state.values.items()}
    for name, value in records[0].items():
        np.testing.assert_allclose(value, records[1][name], rtol=1e-10, err_msg=name)
    for function in (logistic, hinge):
        with pytest.raises(ValueError, match=r"allowed: the shape of f, \(5, 3\); for class labels"):
            function(f, labels)


def run_sgd():
    import optax

    return optax.sgd(0.1)


def test_unsigned_and_boolean_targets_count_as_numbers():
    f = jnp.array([[2.0]])
    for y in (np.uint8([[1]]), np.array([[True]]), np.int8([[1]])):
        np.testing.assert_allclose(logistic(f, y), 0.126928, rtol=1e-5)
        np.testing.assert_allclose(hinge(0.5 * f, y), 0.0)
        np.testing.assert_allclose(mse(f, y), 1.0)
    y = np.uint8([[1], [0], [3]])
    np.testing.assert_allclose(label_alignment(jnp.eye(3), y), label_alignment(jnp.eye(3), y.astype(float)), rtol=1e-6)


def test_masked_classes_are_no_nans():
    f, y = jnp.array([[1.0, -jnp.inf, 0.0], [0.5, -jnp.inf, 2.0]]), np.eye(3)[[0, 2]]
    kept = cross_entropy(f[:, ::2], y[:, ::2])
    np.testing.assert_allclose(cross_entropy(f, y), kept, rtol=1e-6)
    slope = jax.grad(cross_entropy)(f, y)
    np.testing.assert_allclose(slope[:, ::2], jax.grad(cross_entropy)(f[:, ::2], y[:, ::2]), rtol=1e-6)
    assert not np.any(slope[:, 1])
    assert float(accuracy(f, y)) == 1.0
    assert np.isinf(cross_entropy(f, np.eye(3)[[1, 1]]))
    for bad in (jnp.nan, jnp.inf):
        assert np.isnan(accuracy(f.at[0, 0].set(bad), y))


def test_targets_that_are_not_like_the_outputs_are_named():
    y = (jnp.ones((N, V)), jnp.ones(N))
    with pytest.raises(ValueError, match=r"^y: got .* for outputs .*ntk\(labels=False\)"):
        read(lambda p, x: sequence(p, x)[:, 0], y)
    assert "kernel_distance" in read(lambda p, x: sequence(p, x)[:, 0], y, labels=False)


@pytest.mark.slow
def test_half_precision_kernels_are_read_in_float32():
    p = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), P)
    y = jnp.ones((N, V), jnp.bfloat16)

    def f(p, x):
        return sequence(p, x.astype(jnp.bfloat16))[:, 0]

    found, exact = read(f, y, p, spectrum=2, modes=1), read(lambda p, x: sequence(p, x)[:, 0], y, spectrum=2, modes=1)
    for name in ("ntk_trace", "ntk_eigenvalues", "alignment", "mode_loss"):
        np.testing.assert_allclose(found[name], exact[name], rtol=0.06, err_msg=name)  # bf16: a few roundings of 2^-8


@pytest.mark.slow
def test_distance_and_alignment_of_a_run_are_those_of_the_kernels():
    found = read(sequence, jnp.zeros((N, T, V)) + jnp.arange(N)[:, None, None], gram=True)
    first = read(sequence, jnp.zeros((N, T, V)), jax.tree.map(lambda leaf: leaf / 1.2, P), gram=True)["ntk"]
    np.testing.assert_allclose(found["kernel_distance"], kernel_distance(found["ntk"], first), rtol=1e-4)
    y = jnp.arange(N)[:, None] * jnp.ones((1, T * V))
    np.testing.assert_allclose(found["alignment"], kernel_alignment(found["ntk"], y @ y.T), rtol=1e-4)
