"""The empirical NTK against dense Jacobians: every architecture, axes, tiles, batch mixing, pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from empirical_zoo import ZOO, dense, dense_once, fast_jit, inputs, mlp, normal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamics.empirical import (
    DEFAULT_BUDGET,
    NtkImplementation,
    block_contraction,
    empirical_kernel_fn,
    empirical_nngp_fn,
    empirical_ntk_fn,
    empirical_ntk_parts_fn,
    empirical_ntk_plan,
    empirical_ntk_vp_fn,
)
from dynamics.empirical.gram import mirrored, upper_blocks
from dynamics.program.sample_axis import splits_into_samples

# relative to the largest entry; float32: a few hundred roundings of 6e-8, float64 alike
TOLERANCE = {"float32": 1e-5, "float64": 1e-11}


def error(kernel, reference):
    return float(jnp.abs(kernel - reference).max() / jnp.abs(reference).max())


# one of each class of structure; the slow suite takes them all
QUICK = ("mlp", "cnn_grouped", "transformer_tied", "rnn_scan", "remat_jit_custom_vjp", "weights_meet_weights")


def chosen(quick):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in ZOO]


@pytest.mark.parametrize("name", chosen(QUICK))
def test_equals_dense_jacobian_in_float64(name, x64):
    f, params, shape = ZOO[name]()
    x = inputs(shape, 5)
    x1, x2 = x[:3], x[3:]
    assert splits_into_samples(f, params, x1, "refuse")
    kernel = fast_jit(empirical_ntk_fn(f, trace_axes=()))(x1, x2, params)
    full = dense_once(f, params, x)
    assert error(kernel, full[:3, 3:]) < TOLERANCE["float64"]


@pytest.mark.parametrize("name", chosen(("mlp", "rnn_scan")))
def test_equals_dense_jacobian_in_float32_traced_and_symmetric(name):
    f, params, shape = ZOO[name]()
    x = inputs(shape, 3)
    full = dense_once(f, params, x)
    kernel = fast_jit(empirical_ntk_fn(f))(x, None, params)
    assert error(kernel, jnp.einsum("nmcc->nm", full) / full.shape[-1]) < TOLERANCE["float32"]


@pytest.mark.parametrize("trace", [(), (-1,)])
@pytest.mark.parametrize("name", chosen(("cnn_grouped",)))
def test_gradients_formed_a_few_columns_at_a_time_change_nothing(name, trace, x64, monkeypatch):
    f, params, shape = ZOO[name]()
    x, weights = inputs(shape, 3), jax.tree.map(lambda leaf: 0.5 + leaf**2, params)

    def kernels(p):  # weights rule the Gram path out, so that every leaf's gradients are formed
        weighted = empirical_ntk_parts_fn(f, lambda path: "all", trace, weights=weights)(x, None, p)["all"]
        return weighted, empirical_ntk_fn(f, trace)(x, None, p)

    whole = fast_jit(kernels)(params)
    monkeypatch.setattr(block_contraction, "CACHED", 64)
    for chunked, at_once in zip(fast_jit(lambda p: kernels(p))(params), whole, strict=True):
        assert error(chunked, at_once) < TOLERANCE["float64"]


@pytest.mark.parametrize("trace", [(), (-1,)])
def test_an_accelerator_forms_all_gradients_at_once(trace, x64, monkeypatch):
    """A chunk's launch costs it more than the chunk's products: no loop is left, and the kernel is the same."""
    params, x = {"in": normal(0, 16, 128), "out": normal(1, 128, 3)}, normal(2, 60, 40, 16)

    def kernel():
        def f(p, x):  # traced anew
            return jnp.tanh(x @ p["in"]).mean(1) @ p["out"]

        traced = jax.jit(lambda p, x: empirical_ntk_fn(f, trace)(x, None, p)).trace(params, x)
        return "scan[" in str(traced.jaxpr), traced.lower().compile()(params, x)

    loops, in_chunks = kernel()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    no_loops, at_once = kernel()
    assert (loops, no_loops) == (True, False)
    assert error(at_once, in_chunks) < TOLERANCE["float64"]


@pytest.mark.parametrize("rows", [1, 5, 128, 131, 259])
def test_upper_blocks_make_the_whole_product(rows, x64):
    matrix = normal(0, rows, 7)
    np.testing.assert_allclose(mirrored(upper_blocks(matrix)), matrix @ matrix.T, rtol=1e-12, atol=1e-14)


def random_layers(least):
    kinds = ["dense", "scale", "residual", "shared", "loop", "norm", "product"]
    return st.lists(st.sampled_from(kinds), min_size=least, max_size=4)


def examples(count):
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@examples(3)
@given(random_layers(2), st.integers(1, 4), st.integers(1, 3))
def test_random_networks_equal_dense_jacobian(layers, width, samples):
    check_random_network(layers, width, samples)


@pytest.mark.slow
@examples(40)
@given(random_layers(0), st.integers(1, 4), st.integers(1, 3))
def test_many_random_networks_equal_dense_jacobian(layers, width, samples):
    check_random_network(layers, width, samples)


def check_random_network(layers, width, samples):
    with jax.enable_x64(True):
        params = {"in": normal(0, 3, width), "shared": normal(1, width, width), "out": normal(2, width, 2)}
        params |= {str(i): normal(3 + i, width, width) for i in range(len(layers))}

        def f(p, x):
            h = x @ p["in"]
            for i, layer in enumerate(layers):
                w = p[str(i)]
                if layer == "dense":
                    h = jnp.tanh(h @ w)
                elif layer == "scale":
                    h = jnp.sin(h @ (0.5 * w.T))
                elif layer == "residual":
                    h = h + jax.nn.gelu(jnp.einsum("nd,de->ne", h, w))
                elif layer == "shared":
                    h = jnp.tanh(h @ p["shared"] + h @ w)
                elif layer == "loop":
                    h = jax.lax.scan(lambda h, _, w=w: (jnp.tanh(h @ w + h @ p["shared"]), None), h, None, length=2)[0]
                elif layer == "norm":
                    h = w[0] * h / jnp.sqrt(1 + (h**2).sum(-1, keepdims=True))
                else:
                    h = h @ (w @ p["shared"].T)
            return h @ p["out"]

        x = inputs((3,), samples)
        kernel = fast_jit(empirical_ntk_fn(f, trace_axes=()))(x, None, params)
        full = dense_once(f, params, x)
        assert float(jnp.abs(kernel - full).max()) < TOLERANCE["float64"] * max(float(jnp.abs(full).max()), 1e-6)


def two_axes():
    params = {"w": normal(1, 3, 4, 2), "b": normal(2, 4, 2)}
    return lambda p, x: jnp.tanh(jnp.einsum("nd,dij->nij", x, p["w"]) + p["b"]) * 2, params


@pytest.mark.parametrize(
    ("trace", "diagonal"),
    [((), ()), ((-1,), ()), ((1,), (2,)), ((2, 1), ()), ((), (0,)), ((0,), ()), ((0, 1), (2,)), ((2,), (0, 1))],
)
def test_axes_as_traces_and_diagonals_of_the_full_kernel(trace, diagonal, x64):
    f, params = two_axes()
    x = inputs((3,), 3)
    full = fast_jit(empirical_ntk_fn(f, trace_axes=()))(x, None, params)
    traced, kept = sorted(axis % 3 for axis in trace), [axis % 3 for axis in diagonal]
    pairs = ["ab", "cd", "ef"]
    letters = "".join(pair[0] * 2 if axis in (*traced, *kept) else pair for axis, pair in enumerate(pairs))
    result = "".join(pair[0] if axis in kept else pair for axis, pair in enumerate(pairs) if axis not in traced)
    size = np.prod([full.shape[2 * axis] for axis in traced])
    expected = jnp.einsum(f"{letters}->{result}", full) / size
    kernel = fast_jit(empirical_ntk_fn(f, trace_axes=trace, diagonal_axes=diagonal))(x, None, params)
    np.testing.assert_allclose(kernel, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("trace", "memory"), [((), 1), ((), 8000), ((-1,), 1), ((-1,), 3000)])
def test_tiles_change_nothing(trace, memory, x64):
    f, params, shape = mlp()
    x1, x2 = inputs(shape, 7), inputs(shape, 5, seed=1)
    whole, tiled = (fast_jit(empirical_ntk_fn(f, trace, memory=budget)) for budget in (2**40, memory))
    np.testing.assert_allclose(tiled(x1, None, params), whole(x1, None, params), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(tiled(x1, x2, params), whole(x1, x2, params), rtol=1e-12, atol=1e-14)


def test_estimate_falls_with_the_budget_down_to_one_sample():
    f, params, shape = mlp()
    x = inputs(shape, 64)
    plans = [empirical_ntk_plan(f, x, None, params, memory=budget) for budget in (2**30, 20000, 1)]
    assert plans[0].tile == 64
    assert plans[1].bytes <= 20000
    assert plans[2].tile == 1


def within(names):
    cases = [(name, trace) for name in ZOO for trace in ((), (-1,))]
    return [case if case in names else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("name", "trace"), within([("mlp", ())]))
def test_temporaries_stay_within_the_estimate_and_the_estimate_within_the_budget(name, trace):
    f, params, shape = ZOO[name]()
    x = inputs(shape, 24)
    whole = empirical_ntk_plan(f, x, None, params, trace)
    for budget in (DEFAULT_BUDGET, int(whole.bytes / 3)):
        plan = empirical_ntk_plan(f, x, None, params, trace, memory=budget)
        ntk_fn = empirical_ntk_fn(f, trace, memory=budget)
        memory = fast_jit(lambda p, ntk_fn=ntk_fn: ntk_fn(x, None, p)).lower(params).compile().memory_analysis()
        assert memory is not None
        assembly = memory.output_size_in_bytes if plan.tile < 24 else 0  # not counted: it is the kernel
        assert memory.temp_size_in_bytes <= plan.bytes + assembly
        assert plan.bytes <= budget


@pytest.mark.parametrize("implementation", list(NtkImplementation))
def test_implementation_and_vmap_axes_change_nothing(implementation):
    f, params, shape = mlp()
    x = inputs(shape, 3)
    kernel = fast_jit(empirical_ntk_fn(f, vmap_axes=0, implementation=implementation))(x, None, params)
    assert bool(jnp.all(kernel == fast_jit(empirical_ntk_fn(f))(x, None, params)))


def batch_norm(params, x):
    return (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-3) @ params


def test_batch_statistics_are_refused_or_exact(x64):
    params, x = normal(0, 4, 2), inputs((4,), 5)
    with pytest.raises(ValueError, match="mixes the samples of a batch"):
        empirical_ntk_fn(batch_norm)(x, None, params)
    kernel = fast_jit(empirical_ntk_fn(batch_norm, trace_axes=(), mixing="exact"))(x, None, params)
    assert error(kernel, dense_once(batch_norm, params, x)) < TOLERANCE["float64"]


MIXING = {
    "softmax over samples": lambda p, x: jax.nn.softmax(x @ p, axis=0),
    "attention over samples": lambda p, x: (x @ x.T) @ x @ p,
    "running sum": lambda p, x: jnp.cumsum(x, 0) @ p,
    "sorted samples": lambda p, x: jnp.sort(x @ p, axis=0),
    "inside jit": lambda p, x: jax.jit(lambda y: y - y.mean(0))(x @ p),
}


@pytest.mark.parametrize("name", MIXING)
def test_other_mixtures_are_refused(name):
    with pytest.raises(ValueError, match="mixing='exact'"):
        empirical_ntk_fn(MIXING[name])(inputs((4,), 3), None, normal(0, 4, 2))


UNDECIDED = {
    "reversed": lambda p, x: x[::-1] @ p,
    "rolled": lambda p, x: jnp.roll(x, 1, 0) @ p,
    "divided by the batch's size": lambda p, x: x @ p / x.shape[0],
    "noise by position": lambda p, x: x * jax.random.normal(jax.random.key(0), x.shape) @ p,
    "fixed size": lambda p, x: (x + jnp.arange(12.0).reshape(3, 4)) @ p,
    "no batch axis": lambda p, x: jnp.tanh(x[0] @ p)[None].repeat(2, 0),
    "loop with a counter": lambda p, x: jax.lax.scan(lambda c, y: (c + 1, y @ p * c), 1.0, x)[1],
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_what_cannot_be_split_is_exact_from_the_whole_batch(name, x64):
    f, params, x = UNDECIDED[name], normal(0, 4, 2), inputs((4,), 3)
    kernel = fast_jit(empirical_ntk_fn(f, trace_axes=(), mixing="exact"))(x, None, params)
    assert error(kernel, dense_once(f, params, x)) < TOLERANCE["float64"]
    assert not splits_into_samples(f, params, x, "exact")


SPLITS = {
    "map over samples": lambda p, x: jax.lax.map(lambda row: jnp.tanh(row @ p), x),
    "vmap": lambda p, x: jax.vmap(lambda row: jnp.tanh(row @ p))(x),
    "class token": lambda p, x: jnp.concatenate([jnp.broadcast_to(p.T[:1], (x.shape[0], 4)), x], 1)[:, :4] @ p,
    "merged axes": lambda p, x: (x.reshape(-1, 2) @ p[:2]).reshape(x.shape[0], -1),
    "one-hot": lambda p, x: jax.nn.one_hot(jnp.argmax(x, -1), 4) @ p,
    "pairs": lambda p, x: jnp.einsum("ni,nj->nij", x, x).reshape(x.shape[0], -1)[:, :4] @ p,
    "squeezed": lambda p, x: jnp.squeeze(x @ p[:, :1]),
}


@pytest.mark.parametrize("name", SPLITS)
def test_functions_of_each_sample_are_recognised(name, x64):
    f, params, x = SPLITS[name], normal(0, 4, 2), inputs((4,), 3)
    assert splits_into_samples(f, params, x, "refuse")
    jacobian = fast_jit(jax.jacrev(f))(params, x)
    flat = jacobian.reshape(-1, params.size)
    kernel = fast_jit(empirical_ntk_fn(f, trace_axes=()))(x, None, params)
    rows = flat @ flat.T
    if jacobian.ndim == 4:
        c = jacobian.shape[1]
        rows = rows.reshape(3, c, 3, c).transpose(0, 2, 1, 3)
    assert error(kernel, rows) < TOLERANCE["float64"]


def test_pytrees_in_and_out(x64):
    params = {"a": normal(0, 3, 4), "b": [normal(1, 4, 2), jnp.arange(3)]}

    def f(p, x):
        h = jnp.tanh(x["left"] @ p["a"]) + x["right"] @ p["a"]
        return {"h": h, "out": (h @ p["b"][0],)}

    x = {"left": inputs((3,), 3), "right": inputs((3,), 3, seed=1)}
    kernels = fast_jit(empirical_ntk_fn(f, trace_axes=()))(x, None, params)
    moving = {"a": params["a"], "b": params["b"][0]}
    for pick, kernel in ((lambda o: o["h"], kernels["h"]), (lambda o: o["out"][0], kernels["out"][0])):

        def one(p, x, pick=pick):
            return pick(f({"a": p["a"], "b": [p["b"], params["b"][1]]}, x))

        assert error(kernel, dense_once(one, moving, x)) < TOLERANCE["float64"]


@pytest.mark.parametrize(("trace", "diagonal"), [((), ()), ((-1,), ()), ((), (0,)), ((0,), ())])
def test_an_empty_batch_has_an_empty_kernel(trace, diagonal):
    params, x = normal(0, 4, 2), inputs((4,), 3)
    kernel = jax.eval_shape(empirical_ntk_fn(lambda p, x: x @ p, trace, diagonal), x, None, params)
    empty = jax.eval_shape(empirical_ntk_fn(lambda p, x: x @ p, trace, diagonal), x[:0], None, params)
    assert empty.shape == tuple(0 if size == 3 else size for size in kernel.shape)


def test_complex_numbers_inside_are_exact_and_complex_ends_refused(x64):
    params, x = {"w": normal(0, 4, 5), "v": normal(1, 5, 2)}, inputs((4,), 3)

    def f(p, x):
        return jnp.abs((x + 1j * x**2) @ p["w"].astype(complex)) @ p["v"]

    kernel = fast_jit(empirical_ntk_fn(f, trace_axes=()))(x, None, params)
    assert error(kernel, dense_once(f, params, x)) < TOLERANCE["float64"]
    with pytest.raises(ValueError, match="dtype complex128"):
        empirical_ntk_fn(lambda p, x: x @ p["w"] + 1j)(x, None, params)


def test_products_with_vectors_and_other_batches(x64):
    f, params, shape = mlp()
    x1, x2 = inputs(shape, 4), inputs(shape, 3, seed=1)
    v = normal(5, 3, 3)
    product = fast_jit(lambda p: empirical_ntk_vp_fn(f, x1, x2, p)(v))(params)
    np.testing.assert_allclose(product, jnp.einsum("nmcd,md->nc", dense_once(f, params, x1, x2), v), rtol=1e-11)


def test_inputs_of_different_shapes(x64):
    f, params, _ = ZOO["cnn"]()
    x1, x2 = inputs((6, 6, 2), 2), inputs((5, 7, 2), 3)
    kernel = fast_jit(empirical_ntk_fn(f, trace_axes=()))(x1, x2, params)
    assert error(kernel, dense_once(f, params, x1, x2)) < TOLERANCE["float64"]


def test_vmap_grad_and_kernel_function(x64):
    f, params, shape = mlp()
    x = inputs(shape, 3)
    ntk_fn = empirical_ntk_fn(f)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    mapped = fast_jit(jax.vmap(lambda p: ntk_fn(x, None, p)))(stacked)
    doubled = fast_jit(ntk_fn)(x, None, jax.tree.map(lambda leaf: 2 * leaf, params))
    np.testing.assert_allclose(mapped[1], doubled, rtol=1e-12)
    gradient = fast_jit(jax.grad(lambda p: ntk_fn(x, None, p).sum()))(params)
    reference = fast_jit(jax.grad(lambda p: jnp.einsum("nmcc->", dense(f, p, x)) / 3))(params)
    for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(reference)):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)
    kernel_fn = empirical_kernel_fn(f)
    both = fast_jit(lambda p: kernel_fn(x, None, None, p))(params)
    np.testing.assert_allclose(both.nngp, fast_jit(empirical_nngp_fn(f))(x, None, params), rtol=1e-12)
    np.testing.assert_allclose(both.ntk, fast_jit(lambda p: kernel_fn(x, x, "ntk", p))(params), rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (dict(trace_axes=(2,)), "trace_axes"),
        (dict(trace_axes=(1, -1)), "trace_axes"),
        (dict(trace_axes=(-1,), diagonal_axes=(1,)), "diagonal_axes"),
        (dict(mixing="maybe"), "mixing"),
        (dict(implementation=7), "implementation"),
        (dict(memory=-1), "memory"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    f, params, shape = mlp()
    with pytest.raises(ValueError, match=name):
        empirical_ntk_fn(f, **arguments)(inputs(shape, 2), None, params)


def test_a_kernel_beyond_the_memory_is_refused_before_anything_is_allocated():
    ntk_fn = empirical_ntk_fn(lambda w, x: x @ w, trace_axes=())
    x, w = jax.ShapeDtypeStruct((3_000_000, 2), jnp.float32), jax.ShapeDtypeStruct((2, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"got 3000000 and 3000000 samples.*at most \d+ samples"):
        jax.eval_shape(lambda w, x: ntk_fn(x, None, w), w, x)
    few = jax.ShapeDtypeStruct((30, 2), jnp.float32)
    assert jax.eval_shape(lambda w, x: ntk_fn(x, None, w), w, few).shape == (30, 30, 3, 3)
    line = empirical_ntk_fn(lambda w, x: x @ w, diagonal_axes=(0,))
    assert jax.eval_shape(lambda w, x: line(x, None, w), w, x).shape == (3_000_000,)
