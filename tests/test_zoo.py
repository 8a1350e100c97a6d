# ruff: noqa: E501 one program a line
"""Networks that people bring, times everything read off them: equal to dense float64, or a refusal that says why."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from empirical_zoo import ZOO, fast_jit, inputs, normal
from jax import lax
from jax.flatten_util import ravel_pytree

from dynamics import operators
from dynamics.empirical import empirical_ntk_fn, empirical_ntk_parts_fn, empirical_ntk_vp_fn, flat_kernel
from dynamics.linalg import eigenpairs
from dynamics.observe import density, hessian_eigenvalues, sharpness, top_eigenvalue
from dynamics.taylor import linearize
from dynamics.types import Batch, Objective, View

N, D, K = 4, 3, 2
TOKENS = ("tokens", 5, 3)


def two(**more):
    return {"w": normal(1, D, 4), "v": normal(2, 4, K), **more}


def layered(inner, shape=(D,), make=two, **more):
    """A program around one inner layer ``(p, h) -> h``, ``h [n, 4]``."""
    return lambda: (lambda p, x: inner(p, jnp.tanh(x @ p["w"])) @ p["v"], make(**more), shape)


def whole(f, make=two, shape=(D,), **more):
    return lambda: (f, make(**more), shape)


def half(dtype):
    def make():
        p = jax.tree.map(lambda leaf: leaf.astype(dtype), two(b=normal(3, 4)))
        return (lambda p, x: jnp.tanh(x.astype(p["w"].dtype) @ p["w"] + p["b"]) @ p["v"]), p, (D,)

    return make


def experts(p, h, chosen):
    gates, place = lax.top_k(jax.nn.softmax(h @ p["g"]), chosen)
    return jnp.einsum("nk,nkd->nd", gates, jnp.einsum("nd,nkde->nke", h, p["e"][place]))


def counted(p, h):
    def round_(carry):
        return carry[0] + 1, jnp.sin(carry[1]) + 0.1 * h

    return lax.while_loop(lambda c: c[0] < 3, round_, (0, h))[1]


def attention(p, x):
    h = x[..., None] * p["w"][0]
    scores = jax.nn.softmax(jnp.einsum("ntd,de,nse->nts", h, p["q"], h))
    return (scores @ h).mean(1) @ p["v"]


@jax.custom_vjp
def cubed(x):
    return x**3


cubed.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))


@jax.custom_jvp
def bent(x):
    return jnp.sin(x)


bent.defjvp(lambda at, along: (jnp.sin(at[0]), jnp.cos(at[0]) * along[0]))


def linen(make_module, shape=(D,), dtype=None):
    def make():
        import flax.linen as nn

        from dynamics.models import from_flax

        model = from_flax(make_module(nn), dtype=dtype)
        p = model.init(jax.random.key(0), (-1, *(shape if dtype is None else shape[2:])))[1]
        return model.apply, jax.tree.map(lambda leaf: leaf.astype(float), p), shape

    return make


def nnx_network():
    from flax import nnx

    from dynamics.models import from_flax

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.one, self.two = nnx.Linear(D, 4, rngs=rngs), nnx.Linear(4, K, rngs=rngs)

        def __call__(self, x):
            return self.two(jnp.tanh(self.one(x)))

    model = from_flax(Net(nnx.Rngs(0)))
    p = model.init(jax.random.key(0), (-1, D))[1]
    return model.apply, jax.tree.map(lambda leaf: leaf.astype(float), p), (D,)


def equinox_network():
    import equinox as eqx

    from dynamics.models import from_equinox

    model = from_equinox(lambda key: eqx.nn.MLP(D, K, 4, 1, jnp.tanh, key=key))
    p = model.init(jax.random.key(0), (-1, D))[1]
    return model.apply, jax.tree.map(lambda leaf: leaf.astype(float), p), (D,)


def closures():
    p = {"mlp/~/linear_0": {"w": normal(1, D, 4), "b": normal(2, 4)}, "mlp/~/linear_1": {"w": normal(3, 4, K)}}

    def linear(name, x):
        def apply(p):
            own = p[f"mlp/~/{name}"]
            return x(p) @ own["w"] + own.get("b", 0.0)

        return apply

    return (lambda p, x: linear("linear_1", lambda p: jnp.tanh(linear("linear_0", lambda p: x)(p)))(p)), p, (D,)


def moving_average(p, h):
    return lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (0.5 + 0 * h, h), axis=1)[1]


def spectral(p, h):
    return jnp.real(jnp.fft.ifft(jnp.fft.fft(h) * (p["c"][:4] + 1j * p["c"][4:])))


def solved(p, h):
    return jnp.linalg.solve(
        jnp.eye(4) + 0.1 * h[:, :, None] * h[:, None], jnp.broadcast_to(h[..., None], (*h.shape, 1))
    )[..., 0]


PROGRAMS = {
    "linear": whole(lambda p, x: x @ p["w"] @ p["v"]),
    "tanh": layered(lambda p, h: h),
    "relu and bias": layered(lambda p, h: jax.nn.relu(h + p["b"]), b=normal(3, 4)),
    "gelu": layered(lambda p, h: jax.nn.gelu(h)),
    "layer norm": layered(lambda p, h: p["g"] * (h - h.mean(-1, keepdims=True)) / (h.std(-1, keepdims=True) + 0.1), g=normal(3, 4)),
    "rms norm": layered(lambda p, h: h * p["g"] * lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 0.1), g=normal(3, 4)),
    "maxout": layered(lambda p, h: jnp.repeat(h.reshape(-1, 2, 2).max(-1), 2, -1)),
    "sort": layered(lambda p, h: jnp.sort(h, -1)),
    "argsort": layered(lambda p, h: jnp.take_along_axis(h**2, jnp.argsort(h, -1), -1)),
    "top_k": layered(lambda p, h: jnp.concatenate([lax.top_k(h, 2)[0]] * 2, -1)),
    "experts, one": layered(lambda p, h: experts(p, h, 1), g=normal(3, 4, 2), e=normal(4, 2, 4, 4)),
    "experts, two": layered(lambda p, h: experts(p, h, 2), g=normal(3, 4, 3), e=normal(4, 3, 4, 4)),
    "experts, soft": layered(lambda p, h: jnp.einsum("ne,nd,edf->nf", jax.nn.softmax(h @ p["g"]), h, p["e"]), g=normal(3, 4, 2), e=normal(4, 2, 4, 4)),
    "segment sum": layered(lambda p, h: jax.ops.segment_sum(h.T, jnp.array([0, 2, 2, 1]), 4).T),
    "scatter": layered(lambda p, h: h.at[:, jnp.array([0, 0])].add(h[:, 2:])),
    "scan": layered(lambda p, h: lax.scan(lambda c, _: (jnp.tanh(c @ p["u"]), c), h, None, length=3)[0], u=normal(3, 4, 4)),
    "scan over time": whole(lambda p, x: lax.scan(lambda c, t: (jnp.tanh(c + t[:, None] * p["w"][0]), None), jnp.zeros((x.shape[0], 4)), x.T)[0] @ p["v"]),
    "scan backwards": whole(lambda p, x: lax.scan(lambda c, t: (jnp.sin(c * p["w"][1] + t[:, None]), c), jnp.zeros((x.shape[0], 4)), x.T, reverse=True)[1].sum(0) @ p["v"]),
    "fori": layered(lambda p, h: lax.fori_loop(0, 3, lambda i, c: jnp.sin(c) + h, h)),
    "while": layered(counted),
    "cond": layered(lambda p, h: lax.cond(p["v"][0, 0] > 0, jnp.sin, jnp.cos, h)),
    "switch": layered(lambda p, h: lax.switch(1, [jnp.sin, jnp.square, jnp.cos], h)),
    "remat": layered(lambda p, h: jax.checkpoint(lambda h, u: jnp.tanh(h @ u))(h, p["u"]), u=normal(3, 4, 4)),
    "jit": layered(jax.jit(lambda p, h: jnp.tanh(h @ p["u"]) + h), u=normal(3, 4, 4)),
    "custom_jvp": layered(lambda p, h: bent(h @ p["u"]), u=normal(3, 4, 4)),
    "custom_vjp": layered(lambda p, h: cubed(h)),
    "custom_vjp in remat": layered(lambda p, h: jax.checkpoint(cubed)(h @ p["u"]), u=normal(3, 4, 4)),
    "custom_vjp in scan": layered(lambda p, h: lax.scan(lambda c, _: (cubed(c) + h, None), h, None, length=2)[0]),
    "fft": layered(spectral, c=normal(3, 8)),
    "rfft": layered(lambda p, h: jnp.fft.irfft(jnp.fft.rfft(h) * p["c"], n=4), c=normal(3, 3)),
    "modulus": layered(lambda p, h: jnp.abs(jnp.exp(1j * h) + p["c"]), c=normal(3, 4)),
    "complex weights": layered(lambda p, h: jnp.real((h @ p["u"]) * jnp.exp(1j * h)), u=normal(3, 4, 4) + 1j * normal(4, 4, 4)),
    "complex fft weights": layered(lambda p, h: jnp.real(jnp.fft.ifft(jnp.fft.fft(h) * p["c"])), c=normal(3, 4) - 1j * normal(4, 4)),
    "bf16": half(jnp.bfloat16),
    "f16": half(jnp.float16),
    "integer leaf": layered(lambda p, h: h[:, p["order"]] ** 2, order=jnp.array([2, 0, 3, 1])),
    "boolean leaf": layered(lambda p, h: jnp.where(p["on"], h, h**2), on=jnp.array([True, False, True, True])),
    "integer powers": layered(lambda p, h: h ** p["powers"], powers=jnp.array([1, 2, 3, 2])),
    "tied": whole(lambda p, x: jnp.tanh(x @ p["t"]) @ p["t"].T, lambda: {"t": normal(1, D, 4)}),
    "weights meet": whole(lambda p, x: jnp.tanh(x @ (p["w"] @ p["v"])) * jnp.linalg.norm(p["v"])),
    "dict outputs": whole(lambda p, x: {"one": jnp.tanh(x @ p["w"]), "two": x @ p["w"] @ p["v"]}),
    "tuple outputs": whole(lambda p, x: (jnp.tanh(x @ p["w"]), (jnp.sin(x @ p["w"] @ p["v"]),))),
    "sequences": whole(lambda p, x: jnp.tanh(x[..., None] * p["w"][0]) @ p["v"]),
    "one number": whole(lambda p, x: (jnp.tanh(x @ p["w"]) @ p["v"])[:, 0]),
    "tokens": whole(lambda p, x: jnp.tanh(p["e"][x].mean(1)) @ p["v"], lambda: {"e": normal(1, 5, 4), "v": normal(2, 4, K)}, TOKENS),
    "tokens tied": whole(lambda p, x: jnp.tanh(p["e"][x].mean(1)) @ p["e"].T, lambda: {"e": normal(1, 5, 4)}, TOKENS),
    "attention": whole(attention, q=normal(3, 4, 4)),
    "conv": whole(lambda p, x: jnp.tanh(lax.conv_general_dilated(x[..., None], p["k"].astype(x.dtype), (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))).mean(1) @ p["v"], k=normal(3, 2, 1, 4)),
    "cumsum": layered(lambda p, h: jnp.cumsum(h, -1)),
    "cumprod": layered(lambda p, h: jnp.cumprod(1 + h, -1)),
    "logsumexp": layered(lambda p, h: h - jax.nn.logsumexp(h, -1, keepdims=True)),
    "associative scan": layered(moving_average),
    "solve": layered(solved),
    "cholesky": layered(lambda p, h: jnp.linalg.cholesky(jnp.eye(4) + h[:, :, None] * h[:, None])[:, 3]),
    "bilinear": layered(lambda p, h: jnp.einsum("ni,ijk,nj->nk", h, p["b"], h), b=normal(3, 4, 4, 4)),
    "safe division": layered(lambda p, h: jnp.where(jnp.abs(h) > 0.1, 1 / jnp.where(jnp.abs(h) > 0.1, h, 1.0), 0.0)),
    "stopped": layered(lambda p, h: h * lax.stop_gradient(h)),
    "dead": layered(lambda p, h: jax.nn.relu(h - 2.0)),
    "unused leaf": layered(lambda p, h: h, extra=normal(3, 2)),
    "none in the tree": layered(lambda p, h: h, nothing=None),
    "closures": closures,
    "vmapped": whole(lambda p, x: jax.vmap(lambda r: jnp.tanh(r @ p["w"]) @ p["v"])(x)),
    "mapped": whole(lambda p, x: lax.map(lambda r: jnp.tanh(r @ p["w"]) @ p["v"], x)),
    "fixed noise": layered(lambda p, h: h + 0.1 * jax.random.normal(jax.random.key(0), (4,))),
    "place in the batch": layered(lambda p, h: h * jnp.arange(h.shape[0])[:, None]),
    "batch norm": layered(lambda p, h: (h - h.mean(0)) / (h.std(0) + 0.1)),
    "contrastive": layered(lambda p, h: jax.nn.softmax(h @ h.T) @ h),
    "batch top_k": layered(lambda p, h: lax.top_k(h.T, h.shape[0])[0].T),
    "batch sort": layered(lambda p, h: jnp.sort(h, 0)),
    "batch size": layered(lambda p, h: h / h.shape[0]),
    "flax dense": linen(lambda nn: nn.Sequential([nn.Dense(4), nn.tanh, nn.LayerNorm(), nn.Dense(K)])),
    "flax embedding": linen(lambda nn: nn.Sequential([nn.Embed(5, 4), lambda h: h.mean(1), nn.Dense(K)]), TOKENS, jnp.int32),
    "flax attention": linen(lambda nn: nn.Sequential([nn.MultiHeadDotProductAttention(2, qkv_features=4), lambda h: h.mean(1)]), (2, 3)),
    "flax gru": linen(lambda nn: nn.Sequential([nn.RNN(nn.GRUCell(3, param_dtype=float)), lambda h: h[:, -1]]), (2, 2)),
    "nnx": nnx_network,
    "equinox": equinox_network,
    "overlapping": ZOO["overlapping_uses"],
    "nested scans": ZOO["nested_scans"],
    "stacked slices": ZOO["stacked_slices"],
}  # fmt: skip
QUICK = (
    "tanh",
    "experts, one",
    "sort",
    "scan",
    "custom_vjp",
    "complex weights",
    "bf16",
    "integer leaf",
    "dict outputs",
    "batch top_k",
)


def real_leaves(p):
    return [jnp.stack([leaf.real, leaf.imag]) if jnp.iscomplexobj(leaf) else leaf for leaf in jax.tree.leaves(p)]


def flat(f, p, x):
    """``theta [P]`` in float64 and ``theta -> outputs [n c]`` of each output array, a complex leaf as two real ones."""
    leaves, structure = jax.tree.flatten(p)
    moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    wide = [real_leaves(leaves[i])[0].astype(float) for i in moving]
    theta, unravel = ravel_pytree(wide)

    def outputs(v):
        given = list(leaves)
        for i, leaf in zip(moving, unravel(v), strict=True):
            given[i] = lax.complex(*leaf) if jnp.iscomplexobj(leaves[i]) else leaf
        return jax.tree.leaves(f(jax.tree.unflatten(structure, given), x))

    return theta, outputs


def loss(f, y):
    """``(1/2n) sum_i |f_i - y_i|^2`` over all outputs."""
    wide = [
        (a.astype(jnp.promote_types(a.dtype, jnp.float32)), b)
        for a, b in zip(*map(jax.tree.leaves, (f, y)), strict=True)
    ]
    return sum(jnp.sum((a - b) ** 2) for a, b in wide) / (2 * wide[0][0].shape[0])


def reference(f, p, x, y):
    theta, outputs = flat(f, p, x)

    def total(v):
        return loss(outputs(v), jax.tree.leaves(y))

    jacobians = [leaf.reshape(-1, theta.size) for leaf in jax.jacrev(outputs)(theta)]
    errors = [(a - b).reshape(-1) for a, b in zip(outputs(theta), jax.tree.leaves(y), strict=True)]
    n = jax.tree.leaves(x)[0].shape[0]
    gradients = sum(
        jnp.einsum("nc,ncp->np", e.reshape(n, -1), j.reshape(n, -1, theta.size)) for e, j in zip(errors, jacobians)
    )
    mean = gradients.mean(0)
    gauss = sum(j.T @ j for j in jacobians) / n
    return {
        "jacobians": jacobians,
        "outputs": outputs(theta),
        "hessian": jax.jacrev(jax.grad(total))(theta),
        "gauss_newton": gauss,
        "fisher": gauss,
        "covariance": gradients.T @ gradients / n - jnp.outer(mean, mean),
    }


def spectrum(operator):
    return jax.vmap(operator.matvec)(jnp.eye(operator.size, dtype=operator.dtype)).astype(float)


def as_operator(view):
    """A matrix, the view's parameters, as what an observable reads: one program for all networks of one size."""
    matrix = view.params
    return operators.Operator(lambda v: matrix @ v, matrix.shape[0], matrix.dtype, lambda v: v)


@fast_jit
def of_matrix(matrix):
    view, found = View(matrix, None), {}
    for observable in (
        top_eigenvalue(as_operator, "sharpness", num_matvecs=30),
        density(as_operator, "h", probes=2, steps=12),
    ):
        found |= observable.update(observable.init(view), view)[1]
    start = jnp.cos(1.0 + jnp.arange(matrix.shape[0]) ** 2)
    pairs = eigenpairs(lambda v: matrix @ v, start, 5, tolerance=1e-6)
    return {"sharpness": found, "density": found, "eigenvalues": {"hessian_eigenvalues": pairs.values}}


def readings(f, p, x, y):
    """What is read, by name: each a function of the parameters."""
    L, batch = Objective(f, loss), Batch(x, y)

    def read(observable, p):
        view = View(p, batch, L)
        return observable.update(observable.init(view), view)[1]

    ones = jax.tree.map(lambda leaf: (1 + 1j if jnp.iscomplexobj(leaf) else 1) * jnp.ones_like(leaf), p)
    cotangents = jax.tree.map(
        lambda leaf: jnp.sin(1.0 + jnp.arange(leaf.size)).reshape(leaf.shape).astype(leaf.dtype), y
    )
    cotangents = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), cotangents, jax.eval_shape(f, p, x))

    def moved(p):
        return jax.tree.map(lambda leaf: 1.25 * leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, p)

    def hessian(view):
        return operators.hessian(L, view.params, batch)

    return {
        "ntk": lambda p: empirical_ntk_fn(f, trace_axes=())(x, None, p),
        "jacobian": lambda p: empirical_ntk_parts_fn(f, lambda path: "all", (), weights=ones)(x, None, p),
        "vp": lambda p: empirical_ntk_vp_fn(f, x, None, p)(cotangents),
        "cotangents": lambda p: cotangents,
        "linearize": lambda p: linearize(f, p)(moved(p), x),
        "gauss_newton": lambda p: spectrum(operators.gauss_newton(L, p, batch)),
        "fisher": lambda p: spectrum(operators.fisher(L, p, batch, output="gaussian")),
        "covariance": lambda p: spectrum(operators.gradient_covariance(L, p, batch)),
        "hessian": lambda p: spectrum(operators.hessian(L, p, batch)),
        "sharpness": lambda p: read(sharpness(num_matvecs=30), p),
        "eigenvalues": lambda p: read(hessian_eigenvalues(5, tolerance=1e-6), p),
        "density": lambda p: read(density(hessian, "h", probes=2, steps=12), p),
    }


def refused(error):
    """A sentence of ours, or JAX's own on a loop that has no derivative."""
    return re.search(r"got .*(;|,) allowed|mixes the samples of a batch|lax\.while_loop", str(error), re.DOTALL)


CASES = [pytest.param(name, None, marks=pytest.mark.slow, id=name) for name in PROGRAMS]
CASES += [pytest.param(name, ("ntk", "vp", "cotangents", "linearize"), id=f"{name}, quickly") for name in QUICK]


@pytest.mark.parametrize(("name", "only"), CASES)
def test_what_is_read_is_the_dense_value_or_refused(name, only, x64):
    f, p, shape = PROGRAMS[name]()
    x, low = inputs(shape, N), name in ("bf16", "f16")
    y = jax.tree.map(
        lambda leaf: 0.5 * jnp.cos(1.0 + jnp.arange(leaf.size).reshape(leaf.shape)), jax.eval_shape(f, p, x)
    )
    # float64: rounding times the depth; half precision: a few roundings of 2^-8 (2^-11) of the largest entry
    tolerance = 0.08 if low else 1e-7
    asked, refusals = readings(f, p, x, y), {}
    spectral = ("sharpness", "eigenvalues", "density")  # of the Hessian's matrix, save for ten programs
    only = (set(asked) if name in QUICK else set(asked) - set(spectral)) if only is None else set(only)
    asked = {what: read for what, read in asked.items() if what in only}
    for what in list(asked):
        try:
            jax.eval_shape(asked[what], p)
        except Exception as error:
            refusals[what] = error
            del asked[what]
    strangers = {what: f"{type(e).__name__}: {e}"[:300] for what, e in refusals.items() if not refused(e)}
    assert not strangers, strangers
    try:
        expected = fast_jit(lambda p: reference(f, p, x, y))(p)
    except ValueError as error:
        assert "while_loop" in str(error)  # noqa: PT017
        assert {"ntk", "vp"} <= set(refusals)
        return
    found = fast_jit(lambda p: {what: read(p) for what, read in asked.items()})(p)
    if "hessian" in only and name not in QUICK and "hessian" in found:
        found |= of_matrix(found["hessian"])
    wrong = {}

    def check(what, one, other, within=tolerance):
        one, other = np.asarray(one, float), np.asarray(other, float)
        off = np.abs(one - other).max() / max(np.abs(other).max(), 1e-3) if one.shape == other.shape else np.inf
        if not off <= within:
            wrong[what] = off

    values = np.linalg.eigvalsh(expected["hessian"])[::-1]
    reach = max(np.abs(values).max(), 1e-3)
    for what, value in found.items():
        if what in ("ntk", "jacobian"):
            kernels = jax.tree.leaves(value)
            for kernel, j in zip(kernels, expected["jacobians"], strict=True):
                check(what, flat_kernel(kernel), j @ j.T)
        elif what == "vp":
            j, v = np.concatenate(expected["jacobians"]), ravel_pytree(found["cotangents"])[0]
            check(what, ravel_pytree(value)[0], j @ (j.T @ np.asarray(v, float)))
        elif what == "linearize":
            along = ravel_pytree(
                [leaf.astype(float) for leaf in real_leaves(p) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
            )[0]
            j = np.concatenate(expected["jacobians"])
            check(what, ravel_pytree(value)[0], ravel_pytree(expected["outputs"])[0] + 0.25 * j @ along)
        elif what in ("gauss_newton", "fisher", "covariance", "hessian"):
            check(what, np.linalg.eigvalsh(value), np.linalg.eigvalsh(expected[what]))
        elif what == "sharpness":
            check(what, value["sharpness"], values[0], max(tolerance, 1e-4))
            if value["sharpness_upper"] < values[0] - tolerance * reach:
                wrong["sharpness_upper"] = value["sharpness_upper"]
        elif what == "eigenvalues":
            check(what, value["hessian_eigenvalues"], values[:5], max(tolerance, 1e-5))
        elif what == "density":
            nodes, weights = np.asarray(value["h_density_nodes"]), np.asarray(value["h_density_weights"])
            seen = nodes[weights > 1e-6]
            slack = max(tolerance, 1e-5) * reach
            if (
                seen.max() > values[0] + slack
                or seen.min() < values[-1] - slack
                or abs(weights.sum(-1) - 1).max() > 1e-4
            ):
                wrong[what] = (seen.min(), seen.max(), values[-1], values[0])
    assert not wrong, wrong


def test_the_zoo_is_large():
    assert len(PROGRAMS) >= 60
    assert len(QUICK) == 10
