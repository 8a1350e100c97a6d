"""Which programs are one sample at a time: every primitive that has a rule, along every axis, against a perturbation.

Every axis has the same size, so that no rule is right by the shapes alone.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dynamics.program import jaxpr, sample_axis_rules
from dynamics.program.sample_axis import splits_into_samples

N = 4
ROWS = np.arange(N**3, dtype=np.float32).reshape(N, N, N) / N**3
ORDER = np.array([[1], [0], [3], [2]])
NHW = ("NHC", "HIO", "NHC")


def gathered(x, i, **numbers):
    names = ("offset_dims", "collapsed_slice_dims", "start_index_map", "operand_batching_dims")
    names = (*names, "start_indices_batching_dims")
    *axes, sizes = (numbers[key] for key in ("o", "c", "s", "b", "ib", "sizes"))
    return lax.gather(x, i, lax.GatherDimensionNumbers(**dict(zip(names, axes, strict=True))), sizes)


def last(x):
    return jnp.argsort(jnp.sum(x, 0), -1)


# x [N, N, N] with the samples on any axis -> an array that has them on the same axis where samples are kept apart
PROGRAMS = {
    "sum": lambda x, a: lax.expand_dims(jnp.sum(x, a), (a,)) + 0 * x,
    "reduce max": lambda x, a: lax.expand_dims(lax.reduce_max(x, (a,)), (a,)) + 0 * x,
    "reduce prod": lambda x, a: lax.expand_dims(lax.reduce(x, 1.0, lax.mul, (a,)), (a,)) + 0 * x,
    "reduce two": lambda x, a: (
        lax.expand_dims(
            lax.reduce((x, ROWS), (0.0, 0.0), lambda s, t: (s[0] + t[0] * t[1], s[1] + t[1]), (a,))[1], (a,)
        )
        + 0 * x
    ),
    "reduce and": lambda x, a: lax.expand_dims(lax.reduce_and(x > 0, (a,)), (a,)) + 0 * x,
    "reduce or, xor": lambda x, a: (
        lax.expand_dims(lax.reduce_or(x > 0, (a,)) ^ lax.reduce_xor(x > 0.1, (a,)), (a,)) + 0 * x
    ),
    "reduce min, argmin": lambda x, a: lax.expand_dims(lax.reduce_min(x, (a,)) + lax.argmin(x, a, int), (a,)) + 0 * x,
    "argmax": lambda x, a: lax.expand_dims(lax.argmax(x, a, jnp.int32), (a,)) + 0 * x,
    "cumsum": lax.cumsum,
    "cumprod": lax.cumprod,
    "cummax": lax.cummax,
    "cummin": lax.cummin,
    "cumlogsumexp": lax.cumlogsumexp,
    "sort": lambda x, a: lax.sort(x, dimension=a),
    "argsort": jnp.argsort,
    "sort beside rows": lambda x, a: lax.sort((x, ROWS), dimension=a)[1],
    "sort by rows": lambda x, a: lax.sort((ROWS, x), dimension=a)[1],
    "top_k": lambda x, a: jnp.moveaxis(lax.top_k(jnp.moveaxis(x, a, -1), N)[0], -1, a),
    "top_k itself": lambda x, a: lax.top_k(x, N)[a % 2].astype(x.dtype),
    "top 2": lambda x, a: jnp.concatenate([lax.top_k(x, 2)[0]] * 2, -1),
    "flip": lambda x, a: jnp.flip(x, a),
    "window sum": lambda x, a: lax.reduce_window(x, 0.0, lax.add, spans(a, 3), (1, 1, 1), "SAME"),
    "window max": lambda x, a: lax.reduce_window(x, -jnp.inf, lax.max, spans(a, 2), (1, 1, 1), "SAME"),
    "window min": lambda x, a: lax.reduce_window(x, jnp.inf, lax.min, spans(a, 3), (1, 1, 1), "SAME"),
    "window of its own": lambda x, a: lax.reduce_window(x, 1.0, lax.mul, spans(a, 3), (1, 1, 1), "SAME"),
    "window in place": lambda x, a: lax.reduce_window(
        x, 0.0, lax.add, (1, 1, 1), (1, 1, 1), tuple((0, 0) if b != a else (1, -1) for b in range(3))
    ),
    "fft": lambda x, a: jnp.real(jnp.fft.fft(x, axis=a)),
    "fft of two": lambda x, a: jnp.imag(jnp.fft.fftn(x, axes=(-2, -1))),
    "rfft": lambda x, a: jnp.fft.irfft(jnp.fft.rfft(x, axis=a) ** 2, n=N, axis=a),
    "pad": lambda x, a: lax.slice_in_dim(
        lax.pad(x, 0.0, [(2 * (b == a), 1 * (b == a), 0) for b in range(3)]), 1, 1 + N, axis=a
    ),
    "shift": lambda x, a: lax.pad(x, 0.0, [(1 * (b == a), -1 * (b == a), 0) for b in range(3)]),
    "roll": lambda x, a: jnp.roll(x, 1, a),
    "slice": lambda x, a: lax.slice_in_dim(x, 1, 3, axis=a).sum(a, keepdims=True) + 0 * x,
    "dynamic slice": lambda x, a: lax.dynamic_slice_in_dim(x, 1, 1, axis=a) + 0 * x,
    "whole dynamic slice": lambda x, a: lax.dynamic_slice_in_dim(x, 0, N, axis=a),
    "split": lambda x, a: jnp.concatenate(jnp.split(x, 2, a)[::-1], a),
    "concatenate": lambda x, a: lax.slice_in_dim(jnp.concatenate([x, 2 * x], a), 2, 2 + N, axis=a),
    "concatenate rows": lambda x, a: lax.slice_in_dim(jnp.concatenate([jnp.asarray(ROWS), x], a), 2, 2 + N, axis=a),
    "stack": lambda x, a: jnp.stack([x, 2 * x], a)[(slice(None),) * a + (1,)],
    "transpose": lambda x, a: jnp.swapaxes(x, a, (a + 1) % 3),
    "moveaxis": lambda x, a: jnp.moveaxis(x, a, 0),
    "merge next": lambda x, a: 2 * jnp.reshape(jnp.reshape(x, (-1, N)), (N, -1, N)) if a else 1 - x,
    "reshape turned": lambda x, a: jnp.reshape(jnp.moveaxis(x, a, 0), x.shape),
    "merged sum": lambda x, a: jnp.reshape(jnp.cumsum(jnp.reshape(x, (-1, N)), a % 2), x.shape),
    "merged sort": lambda x, a: jnp.reshape(jnp.sort(jnp.reshape(x, (N, -1)), -1), x.shape),
    "merged bias": lambda x, a: jnp.reshape(jnp.reshape(x, (-1, N)) + ROWS.reshape(-1, N), x.shape),
    "merged top_k": lambda x, a: jnp.reshape(lax.top_k(jnp.reshape(x, (-1, N)).T, x.size // N)[0].T, x.shape),
    "outer": lambda x, a: jnp.einsum("abc,dbc->adb", x, x),
    "batched product": lambda x, a: jnp.einsum("abc,abd->acd", x, x),
    "product with rows": lambda x, a: lax.dot_general(x, ROWS, (((a,), (a,)), ((), ())))[..., 0],
    "product beside rows": lambda x, a: jnp.einsum("abc,abd->abcd", x, ROWS).sum(3),
    "product of weights": lambda x, a: jnp.moveaxis(jnp.tensordot(x, ROWS[0], ((a,), (0,))), -1, a),
    "conv": lambda x, a: lax.conv_general_dilated(x, ROWS[:3], (1,), "SAME", dimension_numbers=NHW),
    "conv of one": lambda x, a: lax.conv_general_dilated(x, ROWS[:1], (1,), "SAME", dimension_numbers=NHW),
    "conv shifted": lambda x, a: lax.conv_general_dilated(x, ROWS[:1], (1,), [(1, -1)], dimension_numbers=NHW),
    "conv depthwise": lambda x, a: lax.conv_general_dilated(
        x, ROWS[:1, :1], (1,), "SAME", dimension_numbers=NHW, feature_group_count=N
    ),
    "conv of batches": lambda x, a: (
        lax.conv_general_dilated(x, ROWS[:1], (1,), "SAME", dimension_numbers=NHW, batch_group_count=N) + 0 * x
    ),
    "rows beside": lambda x, a: x + ROWS,
    "rows, one a place": lambda x, a: x * jnp.arange(N),
    "positions": lambda x, a: x * lax.broadcasted_iota(x.dtype, x.shape, a),
    "select": lambda x, a: jnp.where(lax.broadcasted_iota(x.dtype, x.shape, a) > 1, x, -x),
    "select by value": lambda x, a: lax.select(x > 0.5, x, x**2),
    "clamp": lambda x, a: lax.clamp(0.1, x, 0.5),
    "clamp by rows": lambda x, a: lax.clamp(jnp.asarray(ROWS - 1), x, jnp.asarray(ROWS)),
    "by the batch's size": lambda x, a: x * (x.shape[a] * 2),
    "an integer of the batch": lambda x, a: ((100 * x).astype(int) % x.shape[a]).astype(x.dtype),
    "an array of the batch": lambda x, a: x * jnp.asarray([1.0 / x.shape[a]] * N, x.dtype),
    "another function alone": lambda x, a: jnp.tanh(x) if x.shape[a] > 1 else jnp.sin(x),
    "bits": lambda x, a: lax.bitcast_convert_type(x, jnp.int32).astype(x.dtype),
    "halves": lambda x, a: lax.bitcast_convert_type(x, jnp.int16).sum(-1).astype(x.dtype),
    "halves joined": lambda x, a: lax.bitcast_convert_type(
        jnp.stack([(100 * x).astype(jnp.int16)] * 2, -1), jnp.int32
    ).astype(x.dtype),
    "halves of samples": lambda x, a: (
        lax.expand_dims(lax.bitcast_convert_type((100 * x[..., :2]).astype(jnp.int16), jnp.int32).astype(x.dtype), (2,))
        + 0 * x
    ),
    "take": lambda x, a: jnp.take(x, jnp.array([2, 0, 1, 1]), a),
    "take along": lambda x, a: jnp.take_along_axis(x, jnp.argsort(x, a), a),
    "take along fixed": lambda x, a: jnp.take_along_axis(x, np.argsort(-ROWS, a), a),
    "take of rows": lambda x, a: jnp.take_along_axis(jnp.asarray(ROWS), jnp.argsort(x, a), a),
    "a table": lambda x, a: jnp.asarray(ROWS)[0, 0][(N * jax.nn.sigmoid(x)).astype(int)],
    "coordinates": lambda x, a: (
        jnp.asarray(ROWS)[tuple(jnp.moveaxis((N * jax.nn.sigmoid(x)).astype(int), a, 0)[:3])][..., None] + 0 * x
    ),
    "gather by samples": lambda x, a: (
        gathered(
            jnp.asarray(ROWS),
            (N * jax.nn.sigmoid(x)).astype(int)[..., :2],
            o=(2,),
            c=(0, 1),
            s=(0, 1),
            b=(),
            ib=(),
            sizes=(1, 1, N),
        )
        + 0 * x
    ),
    "gather whole": lambda x, a: gathered(
        x,
        jnp.array([[1], [0], [3], [2]]),
        o=(1, 2),
        c=(a,),
        s=(a,),
        b=(),
        ib=(),
        sizes=[1 if b == a else N for b in range(3)],
    ),
    "scatter": lambda x, a: jnp.moveaxis(jnp.moveaxis(x, a, 0).at[jnp.array([1, 2])].add(1.0), 0, a),
    "scatter samples": lambda x, a: jnp.moveaxis(jnp.moveaxis(x, a, 0).at[0].add(x[0]), 0, a),
    "segment sum": lambda x, a: jax.ops.segment_sum(x, jnp.array([0, 1, 1, 0]), N),
    "scan": lambda x, a: jnp.moveaxis(lax.scan(lambda c, r: (c + r, c * r), x[0], jnp.moveaxis(x, a, 0))[1], 0, a),
    "scan without carry": lambda x, a: jnp.moveaxis(
        lax.scan(lambda c, r: (c, jnp.sort(r, -1)), (), jnp.moveaxis(x, a, 0))[1], 0, a
    ),
    "scan beside rows": lambda x, a: jnp.moveaxis(
        lax.scan(lambda c, r: (c, r[0] * r[1]), (), (jnp.moveaxis(x, a, 0), jnp.asarray(ROWS)))[1], 0, a
    ),
    "scan backwards": lambda x, a: jnp.moveaxis(
        lax.scan(lambda c, r: (r, c + r), 0 * x[0], jnp.moveaxis(x, a, 0), reverse=True)[1], 0, a
    ),
    "map": lambda x, a: jnp.moveaxis(lax.map(lambda r: r / (1 + jnp.sum(r**2)), jnp.moveaxis(x, a, 0)), 0, a),
    "while": lambda x, a: lax.while_loop(lambda c: jnp.sum(c) < 1e3, lambda c: 2 * c + 1, x**2),
    "fori": lambda x, a: lax.fori_loop(0, 3, lambda i, c: jnp.cumsum(c, a) / 2, x),
    "cond by one": lambda x, a: lax.cond(x[0, 0, 0] > 0.5, jnp.sin, jnp.cos, x),
    "cond": lambda x, a: lax.cond(jnp.asarray(True), lambda y: jnp.cumsum(y, a), jnp.cos, x),
    "jit": lambda x, a: jax.jit(lambda y: jnp.cumsum(y, a))(x),
    "remat": lambda x, a: jax.checkpoint(lambda y: jax.nn.softmax(y, a))(x),
    "custom_jvp": lambda x, a: jax.nn.relu(jnp.cumsum(x, a)),
    "custom_vjp": lambda x, a: squared(jnp.cumsum(x, a)),
    "norm": lambda x, a: x / jnp.linalg.norm(x, axis=a, keepdims=True),
    "cholesky": lambda x, a: jnp.linalg.cholesky(x @ jnp.swapaxes(x, -1, -2) + jnp.eye(N)),
    "solve": lambda x, a: jnp.linalg.solve(x + 5 * jnp.eye(N), x),
    "triangular solve": lambda x, a: lax.linalg.triangular_solve(x + 5 * jnp.eye(N), x, lower=True, left_side=True),
    "svd": lambda x, a: jnp.linalg.svd(x)[0] * 0 + jnp.linalg.svd(x)[1][..., None],
    "qr": lambda x, a: jnp.abs(jnp.linalg.qr(x)[1]),
    "noise": lambda x, a: x + jax.random.normal(jax.random.key(0), x.shape),
    "random signs": lambda x, a: x * jax.random.bernoulli(jax.random.key(1), 0.5, (N,)),
    "expanded": lambda x, a: x[..., None, :].sum(-2),
    "broadcast": lambda x, a: jnp.broadcast_to(x[..., None], (*x.shape, 2)).sum(-1),
    "one axis repeated": lambda x, a: jnp.broadcast_to(lax.slice_in_dim(x, 0, 1, axis=a), x.shape),
    "real parts": lambda x, a: jnp.real(jnp.conj(lax.complex(x, x)) * lax.complex(x, -x)) + jnp.imag(x * 1j),
    "optimization barrier": lambda x, a: lax.optimization_barrier((x, 2 * x))[0],
    "select and gather add": lambda x, a: jax.jvp(
        lambda y: lax.reduce_window(y, -jnp.inf, lax.max, spans(a, 2), (1, 1, 1), "SAME"), (x,), (jnp.asarray(ROWS),)
    )[1],
}


@jax.custom_vjp
def squared(x):
    return x**2


squared.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))


def spans(axis, size):
    return tuple(size if other == axis else 1 for other in range(3))


def probe(name, at, along):
    """``f(p, x)``: samples to axis ``at``, the program along ``along``, samples back to the front."""

    def f(p, x):
        return jnp.moveaxis(PROGRAMS[name](jnp.moveaxis(p * x, 0, at), along), at, 0)

    return f


def outputs_moved(f, p, x):
    """Whether another output than i moves with sample i, or f of one sample is not its row of f of all; by values."""
    whole = np.asarray(f(p, x))
    for i in range(N):
        other = np.asarray(f(p, x.at[i].set(jax.random.normal(jax.random.key(i), x.shape[1:]))))
        rest = np.arange(N) != i
        if whole.shape[0] != N or not np.allclose(whole[rest], other[rest], rtol=1e-4, atol=1e-5):
            return True
    return False


def alone(f, p, x):
    whole = np.asarray(f(p, x))
    ones = [np.asarray(f(p, x[i : i + 1]))[0] for i in range(N)]
    return np.allclose(whole, np.stack(ones), rtol=1e-4, atol=1e-5)


def verdict(f, p, x):
    try:
        return splits_into_samples(f, p, x, "refuse")
    except ValueError as error:
        assert "mixes the samples of a batch" in str(error)  # noqa: PT017
        return None


QUICK = ("top_k itself", "sort beside rows", "take of rows", "another function alone")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PROGRAMS]
)
def test_what_passes_as_per_sample_moves_no_other_output_and_what_is_refused_moves_one(name):
    p, x = jnp.float32(1.5), jax.random.normal(jax.random.key(9), (N, N, N))
    for at, along in itertools.product(range(3), range(3)):
        f = probe(name, at, along)
        try:
            jax.eval_shape(f, p, x)
        except Exception:
            continue
        found, where = verdict(f, p, x), f"{name}, samples on axis {at}, along {along}"
        if found is None:
            assert outputs_moved(f, p, x), f"{where}: refused, and no other output moved"
        elif found:
            assert not outputs_moved(f, p, x), f"{where}: taken sample by sample, and another output moved"
            assert alone(f, p, x), f"{where}: taken sample by sample, and one sample alone gives another value"


def test_every_primitive_that_has_a_rule_has_a_program():
    ruled = sample_axis_rules._REDUCED | sample_axis_rules._ALONG_AXIS | sample_axis_rules._WINDOWED
    ruled |= {
        "dot_general",
        "conv_general_dilated",
        "concatenate",
        "gather",
        "transpose",
        "broadcast_in_dim",
        "squeeze",
    }
    ruled |= {
        "reshape",
        "sort",
        "split",
        "rev",
        "fft",
        "pad",
        "slice",
        "dynamic_slice",
        "top_k",
        "scan",
        "cond",
        "iota",
    }
    seen = set()
    for name in PROGRAMS:
        for at in range(2):
            try:
                seen |= names(jaxpr.trace(probe(name, at, 1), jnp.float32(1.0), jnp.ones((N, N, N))))
            except (TypeError, ValueError):
                continue
    assert not ruled - seen


def names(program):
    inner = [body for e in program.jaxpr.eqns for p in e.params.values() for body in jaxpr.bodies(p)]
    return {equation.primitive.name for equation in program.jaxpr.eqns}.union(*map(names, inner))


def test_top_k_over_the_samples_is_refused_or_exact():
    def f(p, x):
        return lax.top_k((x @ p).T, x.shape[0])[0].T

    x, p = jax.random.normal(jax.random.key(0), (5, 3)), jax.random.normal(jax.random.key(1), (3, 2))
    assert verdict(f, p, x) is None
    assert splits_into_samples(f, p, x, "exact") is False
