"""Slices of landscapes against the landscape itself: parabolas, eigenvalues, rescaled and permuted networks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dynamics import linalg, operators
from dynamics.losses import cross_entropy, half_mse
from dynamics.observe import random_direction, slice, weight_matching
from dynamics.types import Batch, Objective


def network(params, x):
    """Layers named so that their order by name is not that by number's first digit."""
    for i in range(len(params) - 1):
        layer = params[f"layer_{2 + 4 * i}"]
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    last = params[f"layer_{2 + 4 * (len(params) - 1)}"]
    return x @ last["kernel"] + last["bias"]


def network_of(seed, widths):
    rng, params = np.random.default_rng(seed), {}
    for i, (one, two) in enumerate(itertools.pairwise(widths)):
        kernel, bias = rng.normal(size=(one, two)) / one**0.5, 0.3 * rng.normal(size=two)
        params[f"layer_{2 + 4 * i}"] = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    return params


L = Objective(network, half_mse)
WIDTHS = (5, 16, 12, 2)


def batch_of(seed, n=40):
    rng = np.random.default_rng(seed)
    return Batch(jnp.asarray(rng.normal(size=(n, 5))), jnp.asarray(rng.normal(size=(n, 2))))


def moved(params, direction, a):
    return jax.tree.map(lambda p, d: p + a * d, params, direction)


def test_a_quadratic_gives_its_parabola_and_the_error_that_redrawn_samples_show(x64):
    rng = np.random.default_rng(0)
    x, y, w, u = (jnp.asarray(rng.normal(size=shape)) for shape in [(60, 3), (60, 1), (3, 1), (3, 1)])
    quadratic = Objective(lambda w, x: x @ w, half_mse, penalty=lambda w: 0.05 * jnp.sum(w**2))
    line = slice(quadratic, w, Batch(x, y), u, radius=2.0, points=9)
    (a,), residual, push = line.coordinates, x @ w - y, x @ u
    np.testing.assert_array_equal(a, np.linspace(-2, 2, 9))
    each = 0.5 * (residual + a * push) ** 2  # [60, 9]
    exact = jnp.mean(each, 0) + 0.05 * jnp.sum((w + a * u) ** 2, 0)
    np.testing.assert_allclose(line.loss, exact, rtol=1e-12)
    np.testing.assert_allclose(line.error, np.std(each, 0, ddof=1) / np.sqrt(60), rtol=1e-10)
    np.testing.assert_allclose(line.gram, [[jnp.sum(u**2)]], rtol=1e-12)
    assert line.barrier is None
    ends = slice(quadratic, w, Batch(x, y), to=w + u, coordinates=[-1.0, 0.0, 0.5])
    np.testing.assert_allclose(ends.loss, exact[jnp.array([2, 4, 5])], rtol=1e-12)
    assert float(ends.barrier.value) == float(ends.barrier.error) == 0  # a convex loss has none


def test_along_eigenvectors_the_curvature_is_the_eigenvalue(x64):
    """On a plane of two: the second differences are ``lambda_1``, ``lambda_2`` and 0, to fourth order in the step."""
    params, batch = network_of(0, (5, 4, 2)), batch_of(1)
    smooth = Objective(lambda p, x: jnp.tanh(x @ p["layer_2"]["kernel"]) @ p["layer_6"]["kernel"], half_mse)
    H = operators.hessian(smooth, params, batch)
    pairs = linalg.eigenpairs(H.matvec, jnp.cos(jnp.arange(1.0 * H.size)), 2)
    h = 1e-3
    plane = slice(smooth, params, batch, *pairs.vectors, radius=h, points=3)
    second = [np.diff(plane.loss[:, 1], 2)[0], np.diff(plane.loss[1], 2)[0]]
    np.testing.assert_allclose(np.array(second) / h**2, pairs.values, rtol=1e-5)
    mixed = plane.loss[2, 2] - plane.loss[2, 0] - plane.loss[0, 2] + plane.loss[0, 0]
    assert abs(mixed / (4 * h**2)) < 1e-5 * pairs.values[0]
    np.testing.assert_allclose(plane.gram, np.eye(2), atol=1e-10)
    tree = slice(smooth, params, batch, H.unravel(pairs.vectors[0]), radius=h, points=3)
    np.testing.assert_allclose(tree.loss, plane.loss[:, 1], rtol=1e-12)


def test_a_block_direction_leaves_the_rest():
    params, batch = network_of(0, (5, 4, 2)), batch_of(1)
    where = operators.blocks(params)["layer_6"]
    block, unravel, _ = operators.flat(params, where)
    part = unravel(jnp.arange(1.0 * block.size))
    assert part["layer_2"] == {"kernel": None, "bias": None}
    whole = jax.tree.map(jnp.zeros_like, params) | {"layer_6": part["layer_6"]}
    one, two = (slice(L, params, batch, d, points=3).loss for d in (part, whole))
    np.testing.assert_array_equal(one, two)


def rescaled(params, c):
    """ReLU units of the first hidden layer times ``c``, what reads them divided by it: the same network."""
    one, two = params["layer_2"], params["layer_6"]
    one = {"kernel": one["kernel"] * c, "bias": one["bias"] * c}
    return params | {"layer_2": one, "layer_6": two | {"kernel": two["kernel"] / jnp.reshape(c, (-1, 1))}}


@pytest.mark.parametrize(
    ("scale", "every_unit", "same"),
    [("filter", True, True), ("none", True, False), ("filter", False, False), ("weight", False, True)],
)
def test_which_slices_do_not_see_that_relu_units_are_rescaled(x64, key, scale, every_unit, same):
    """A whole layer by one factor (Li et al.): filters do not. Each unit by its own: they do, single weights do not."""
    params, batch = network_of(0, WIDTHS), batch_of(1)
    c = jnp.asarray(np.full(16, 8.0) if every_unit else np.geomspace(0.1, 10, 16))
    other = rescaled(params, c)
    lines = [slice(L, p, batch, random_direction(key, p, scale=scale), points=5) for p in (params, other)]
    np.testing.assert_allclose(lines[1].loss[2], lines[0].loss[2], rtol=1e-12)
    if same:
        np.testing.assert_allclose(lines[1].loss, lines[0].loss, rtol=1e-9)
    else:
        assert np.max(np.abs(lines[1].loss / lines[0].loss - 1)) > 0.1


def test_a_filter_is_what_makes_one_output(key):
    """Convolutions ``[..., in, out]`` and dense layers; biases in whatever shape stand, and integers too."""
    params = {
        "conv": (jax.random.normal(key, (3, 3, 2, 4)), jnp.ones((1, 1, 1, 4))),
        "dense of one": (jax.random.normal(key, (1, 4)), jnp.ones((1, 4))),
        "embedding": jax.random.normal(key, (7, 4), jnp.bfloat16),
        "norm": jnp.ones(4),
        "count": jnp.ones((2, 2), int),
    }
    d = random_direction(jax.random.key(1), params)
    for name, axes in (("conv", (0, 1, 2)), ("dense of one", 0)):
        (weight, bias), own = d[name], params[name][0]
        np.testing.assert_allclose(
            jnp.linalg.norm(weight.reshape(-1, 4), axis=0), jnp.sqrt(jnp.sum(own**2, axes)), rtol=1e-5
        )
        assert not bias.any()
    assert not d["norm"].any()
    assert not d["count"].any()
    assert d["embedding"].any()
    assert d["embedding"].dtype == jnp.float32
    turned = {"layer": {"weight": params["conv"][0].transpose(3, 2, 0, 1), "bias": jnp.ones(4)}}  # equinox, torch
    first = random_direction(key, turned, output_axis=0)["layer"]["weight"]
    sizes = [jnp.sqrt(jnp.sum(w**2, (1, 2, 3))) for w in (first, turned["layer"]["weight"])]
    np.testing.assert_allclose(*sizes, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"output_axis: got -1 for layer/weight \[4, 2, 3, 3\], whose bias has 4; allowed"
    ):
        random_direction(key, turned)


def permuted(params, permutations):
    """Unit i of hidden layer l is unit ``permutations[l][i]`` of params."""
    layers = [dict(params[name]) for name in ("layer_2", "layer_6", "layer_10")]
    for i, units in enumerate(permutations):
        layers[i] = {"kernel": layers[i]["kernel"][:, units], "bias": layers[i]["bias"][units]}
        layers[i + 1] = layers[i + 1] | {"kernel": layers[i + 1]["kernel"][units]}
    return dict(zip(("layer_2", "layer_6", "layer_10"), layers))


def test_a_permuted_copy_has_a_barrier_until_it_is_aligned(precision):
    params, batch = network_of(0, WIDTHS), batch_of(1, 300)
    batch = batch._replace(y=network(params, batch.x))  # both ends are minima
    units = [np.random.default_rng(n).permutation(n) for n in WIDTHS[1:3]]
    copy = permuted(params, units)
    eps = float(jnp.finfo(precision).eps)
    apart = slice(L, params, batch, to=copy, points=11)
    assert float(apart.loss[-1]) < 1e-10
    np.testing.assert_array_equal(apart.barrier.value, jnp.max(apart.loss))
    assert apart.barrier.value > 4 * apart.barrier.error > 0
    aligned = slice(L, params, batch, to=copy, points=11, align=True)
    assert float(aligned.barrier.value) < (100 * eps) ** 2
    found = aligned.permutations[0]
    assert list(found) == ["layer_2/kernel", "layer_6/kernel"]
    for taken, applied in zip(found.values(), units):
        np.testing.assert_array_equal(taken, np.argsort(applied))
    back, _ = weight_matching(L, params, copy, batch, layers=["layer_2", "layer_6", "layer_10"])
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_a_barriers_error_is_its_spread_over_redrawn_samples():
    """200 draws of 100 samples; a spread of 200 is known to 1/sqrt(400)."""
    params = network_of(0, WIDTHS)
    copy = permuted(params, [np.arange(n)[::-1] for n in WIDTHS[1:3]])

    def read(key):
        x = jax.random.normal(key, (100, 5))
        line = slice(L, params, Batch(x, network(params, x)), to=copy, points=5)
        return line.barrier.value, line.barrier.error, line.loss[1], line.error[1]

    barrier, error, loss, loss_error = jax.jit(jax.vmap(read))(jax.random.split(jax.random.key(0), 200))
    assert abs(np.mean(error) / np.std(barrier) - 1) < 3 / np.sqrt(400)
    assert abs(np.mean(loss_error) / np.std(loss) - 1) < 3 / np.sqrt(400)


def test_alignment_brings_other_networks_closer_and_keeps_what_they_compute(x64):
    """Not a copy: the permuted network computes the same, lies closer, and no swap of neighbours is closer."""
    params, other = network_of(0, WIDTHS), network_of(1, WIDTHS)
    batch = batch_of(1)
    moved, _ = weight_matching(L, params, other, batch)
    np.testing.assert_allclose(network(moved, batch.x), network(other, batch.x), rtol=1e-10)

    def apart(tree):
        return float(jnp.linalg.norm(ravel_pytree(tree)[0] - ravel_pytree(params)[0]))

    best = apart(moved)
    assert best < 0.95 * apart(other)
    for layer, width in enumerate(WIDTHS[1:3]):
        swaps = [np.arange(width) for _ in range(width - 1)]
        for i, swap in enumerate(swaps):
            swap[[i, i + 1]] = i + 1, i
            assert apart(permuted(moved, [np.arange(w) for w in WIDTHS[1:3][:layer]] + [swap])) >= best - 1e-9
    joined = slice(L, params, batch, to=[params, moved], align=True, points=2)
    assert [len(found) for found in joined.permutations] == [2, 2]


def test_a_plane_through_three_networks_has_their_losses_at_its_corners(precision, key):
    params, batch = network_of(0, WIDTHS), batch_of(1)
    second, third = (network_of(seed, WIDTHS) for seed in (1, 2))
    plane = slice(L, params, batch, to=[second, third], points=3)
    far = jax.tree.map(lambda a, b, c: b + c - a, params, second, third)
    rtol = 20 * float(jnp.finfo(precision).eps)
    for (i, j), corner in {(0, 0): params, (2, 0): second, (0, 2): third, (2, 2): far}.items():
        np.testing.assert_allclose(plane.loss[i, j], L(corner, batch), rtol=rtol)
    middle = jax.tree.map(lambda a, b, c: a + 0.5 * (b - a) + 0.5 * (c - a), params, second, third)
    np.testing.assert_allclose(plane.loss[1, 1], L(middle, batch), rtol=rtol)
    assert plane.loss.dtype == plane.gram.dtype == jnp.dtype(precision)
    assert plane.error.shape == (3, 3)
    steps = [ravel_pytree(p)[0] - ravel_pytree(params)[0] for p in (second, third)]
    np.testing.assert_allclose(plane.gram, [[a @ b for b in steps] for a in steps], rtol=rtol)
    direction = random_direction(key, params)
    mixed = slice(L, params, batch, direction, to=second, coordinates=[[0.0, 1.0], [-0.5]], parallel=1)
    np.testing.assert_allclose(mixed.loss[1, 0], L(moved(second, direction, -0.5), batch), rtol=rtol)
    assert mixed.barrier is None


def test_errors_are_said_only_where_the_loss_is_a_mean_over_samples(key):
    params, batch = network_of(0, (5, 4, 2)), batch_of(1)
    d = random_direction(key, params)

    def read(objective, batch=batch):
        return slice(objective, params, batch, d, points=3)

    labels = Batch(batch.x, jnp.argmax(batch.y, 1))
    losses = jax.vmap(lambda x, y: cross_entropy(network(params, x[None]), y[None]))(*labels)
    found = read(Objective(network, cross_entropy), labels)
    np.testing.assert_allclose(found.error[1], np.std(losses, ddof=1) / np.sqrt(40), rtol=1e-4)
    plain = Objective.of(lambda params, batch: cross_entropy(network(params, batch.x), batch.y))
    np.testing.assert_allclose(read(plain, labels).error, found.error, rtol=1e-4)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    at_half = Objective(network, lambda f, y: half_mse(f.astype(jnp.float32), y))
    few = batch._replace(x=batch.x.astype(jnp.bfloat16))
    f = network(half, few.x).astype(jnp.float32)
    exact = np.std(0.5 * jnp.sum((f - batch.y) ** 2, 1), ddof=1) / np.sqrt(40)
    np.testing.assert_allclose(slice(at_half, half, few, d, points=3).error[1], exact, rtol=0.02)
    masked = jnp.arange(40) < 30
    over_some = Objective(network, lambda f, y: jnp.sum((f - y)[:, 0] ** 2 * (y[:, 1] > 0)) / jnp.sum(y[:, 1] > 0))
    assert read(over_some).error is None
    odd = Objective.of(lambda p, batch: jnp.mean((network(p, batch["x"]) - batch["y"])[masked] ** 2))
    assert read(odd, {"x": batch.x, "y": batch.y}).error is None  # of one sample it makes no sense
    other = network_of(5, (5, 4, 2))
    line = slice(Objective(network, lambda f, y: jnp.sum((f - y) ** 2)), params, batch, to=other)  # a sum
    assert line.error is None
    assert np.isfinite(line.barrier.value)
    assert np.isnan(line.barrier.error)
    whole = jax.jit(lambda p: slice(L, p, batch, d, points=3)[1:3])(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, tuple(read(L)[1:3]))


PARAMS, BATCH = network_of(0, (5, 4, 3, 2)), batch_of(1, 8)
D = jax.tree.map(jnp.ones_like, PARAMS)
FLAT = {"w1": jnp.ones((5, 4)), "b1": jnp.ones(4), "w2": jnp.ones((4, 2)), "b2": jnp.ones(2)}
SQUARE = list(jax.random.normal(jax.random.key(2), (3, 5, 5)))


def matched(params, other=None, f=network, **options):
    return weight_matching(Objective(f, half_mse), params, params if other is None else other, BATCH, **options)


WRONG = {
    "no direction": (lambda: slice(L, PARAMS, BATCH), "directions: got 0; allowed: one or two, `to` included"),
    "three": (lambda: slice(L, PARAMS, BATCH, D, D, to=D), "directions: got 3; allowed: one or two"),
    "another tree": (
        lambda: slice(L, PARAMS, BATCH, D["layer_2"]),
        "direction: got PyTreeDef.*; allowed: a tree like params",
    ),
    "another shape": (
        lambda: slice(L, PARAMS, BATCH, D | {"layer_2": D["layer_6"]}),
        r"direction: got shape \(3,\) at layer_2/bias; allowed: that of params, \(4,\)",
    ),
    "another vector": (
        lambda: slice(L, PARAMS, BATCH, jnp.ones(3)),
        "direction: got PyTreeDef.*; allowed: a tree like",
    ),
    "a complex one": (
        lambda: slice(L, PARAMS, BATCH, jax.tree.map(lambda d: 1j * d, D)),
        "direction: got 94 float32 numbers; allowed: 47, real as in params",
    ),
    "another network": (lambda: slice(L, PARAMS, BATCH, to=[D]), "to: got PyTreeDef.*; allowed: a tree like params"),
    "align nothing": (
        lambda: slice(L, PARAMS, BATCH, D, align=True),
        "align: got one without a network.*; allowed: with",
    ),
    "radius": (lambda: slice(L, PARAMS, BATCH, D, radius=-1.0), "radius: got -1.0; allowed: a finite number > 0"),
    "points": (lambda: slice(L, PARAMS, BATCH, D, points=1), "points: got 1; allowed: an integer >= 2"),
    "parallel": (lambda: slice(L, PARAMS, BATCH, D, parallel=0), "parallel: got 0; allowed: an integer >= 1"),
    "coordinates": (
        lambda: slice(L, PARAMS, BATCH, D, D, coordinates=[0.0, 1.0]),
        r"coordinates: got shapes \[\(\), \(\)\]; allowed: 2 of shape \[m\]",
    ),
    "no objective": (lambda: slice(network, PARAMS, BATCH, D), "objective: got function; allowed: Objective"),
    "scale": (
        lambda: random_direction(jax.random.key(0), PARAMS, scale="layer"),
        "scale: got 'layer'; allowed: 'filter'",
    ),
    "axis": (
        lambda: random_direction(jax.random.key(0), PARAMS, output_axis=1),
        "output_axis: got 1; allowed: -1 or 0",
    ),
    "no weights": (lambda: random_direction(jax.random.key(0), jnp.ones(3)), "params: got no leaf of two or more axes"),
    "no chain": (
        lambda: matched({"a": jnp.ones((5, 4)), "b": jnp.ones((3, 2))}),
        r"layers: got a \[5, 4\], b \[3, 2\]",
    ),
    "whose bias": (lambda: matched(FLAT), r"params: got b1 \[4\]; allowed: dense layers"),
    "no such layer": (
        lambda: matched(PARAMS, layers=["first"]),
        "layers: got 'first'; allowed: one matrix each, of layer_10",
    ),
    "a wrong order": (
        lambda: matched(
            SQUARE,
            [w[:, ::-1] for w in SQUARE],
            lambda p, x: jnp.tanh(jnp.tanh(x @ p[0]) @ p[1]) @ p[2][:, :2],
            layers=["2", "0", "1"],
        ),
        "layers: got an order in which a permutation of hidden units changes f",
    ),
    "not finite": (
        lambda: matched(PARAMS, jax.tree.map(lambda p: p * jnp.nan, PARAMS)),
        "other: got weights that are not",
    ),
    "other's shape": (
        lambda: matched(PARAMS, network_of(0, (5, 5, 3, 2))),
        r"other: got shape \(5,\) at lay",
    ),
}


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize("case", WRONG)
def test_what_gives_no_slice_is_named(case):
    wrong, words = WRONG[case]
    with pytest.raises((TypeError, ValueError), match=words):
        wrong()
