"""Random programs for neural-tangents and for us: the same calls on two modules, made from the number of a case."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Case(NamedTuple):
    """``run(module)`` calls ``module.stax``, ``module.predict`` or ``module``; it returns arrays."""

    name: str
    run: Any


def quickly(fn):
    """``fn`` compiled as a whole and without effort."""
    return jax.jit(fn, compiler_options=_FAST)


def _softplus(x):
    return jnp.log1p(jnp.exp(x))


def _decay(distance):
    return 0.6**distance


STEEP = ("Exp", "Polynomial", "Monomial", "RectifiedMonomial", "Hermite", "Elementwise")
"""Nonlinearities whose compositions reach 1e100 in a few layers."""
FLAT = ("Sign",)
"""Nonlinearities whose covariances between the positions of one input are wrong in the original."""


def activation(rng, steep=True, flat=False):
    """A nonlinearity with random options, as ``(name, make(stax))``."""
    a, b, c = (round(float(v), 2) for v in rng.uniform(0.3, 1.2, 3))
    made = {
        "Relu": lambda s: s.Relu(do_stabilize=bool(a > 0.7)),
        "LeakyRelu": lambda s: s.LeakyRelu(a),
        "ABRelu": lambda s: s.ABRelu(-a, b),
        "Abs": lambda s: s.Abs(),
        "Erf": lambda s: s.Erf(a, b, c - 0.5),
        "Sigmoid_like": lambda s: s.Sigmoid_like(),
        "Gelu": lambda s: s.Gelu(approximate=bool(a > 0.7)),
        "Sin": lambda s: s.Sin(a, b, c),
        "Cos": lambda s: s.Cos(a, b, c),
        "Rbf": lambda s: s.Rbf(a),
        "Sign": lambda s: s.Sign(),
        "Exp": lambda s: s.Exp(a, b / 2),
        "Gaussian": lambda s: s.Gaussian(a, -b),
        "Gabor": lambda s: s.Gabor(),
        "ExpNormalized": lambda s: s.ExpNormalized(a, -b, do_clip=bool(c > 0.7)),
        "Monomial": lambda s: s.Monomial(int(4 * a) % 4),
        "RectifiedMonomial": lambda s: s.RectifiedMonomial(int(4 * a) % 3),
        "Polynomial": lambda s: s.Polynomial([a - 0.5, b, -c / 2, a / 4]),
        "Hermite": lambda s: s.Hermite(1 + int(4 * a) % 3),
        "Elementwise": lambda s: s.Elementwise(jnp.square, lambda k, q, r: 2 * k**2 + q * r, lambda k, q, r: 4 * k),
        "ElementwiseNumerical": lambda s: s.ElementwiseNumerical(_softplus, 40 + int(10 * a)),
    }
    name = str(rng.choice([n for n in made if (steep or n not in STEEP) and (flat or n not in FLAT)]))
    return name, made[name]


def dense(rng, width=4, plain=False):
    W, b = round(float(rng.uniform(0.6, 1.6)), 2), rng.choice([None, 0.1, 0.4])
    kind = rng.choice(["ntk", "ntk", "ntk" if plain else "standard"])
    scales = (1, 1) if kind == "ntk" else (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    return "Dense", lambda s: s.Dense(width, W, b, parameterization=str(kind), s=scales)


def branches(rng, make):
    """Two branches that end in weight layers, and a join."""
    one, two, ways = make(), make(), int(rng.integers(3))
    join = [lambda s: s.FanInSum(), lambda s: s.FanInProd(), lambda s: s.FanInConcat(-1)][ways]
    name = ["FanInSum", "FanInProd", "FanInConcat"][ways]
    build = lambda s: [s.FanOut(2), s.parallel(one[1](s), two[1](s)), join(s)]  # noqa: E731
    return f"{name}({one[0]}, {two[0]})", build, ways == 0


def chain(parts):
    """The parts in one row: nested in a ``serial``, the original forgets the width of a ``FanInConcat``."""

    def build(s):
        made = [make(s) for _, make in parts]
        return s.serial(*(layer for part in made for layer in (part if isinstance(part, list) else [part])))

    return "-".join(name for name, _ in parts), build


def dropout(rng):
    rate, mode = round(float(rng.uniform(0.3, 1)), 2), str(rng.choice(["train", "test"]))
    return "Dropout", lambda s: s.Dropout(rate, mode)


def vectors(rng):
    """A network on vectors."""
    parts = [dense(rng)]
    blocks = int(rng.integers(1, 3))
    for _ in range(blocks):
        block = int(rng.integers(4))
        if block == 0:
            name, make, gaussian = branches(rng, lambda: chain([activation(rng, False, True), dense(rng, plain=True)]))
            parts.append((name, make))
            parts += [] if gaussian else [dense(rng)]
        elif block == 1:
            parts += [("LayerNorm", lambda s: s.LayerNorm())]
        parts += [activation(rng, blocks == 1, True)]
        parts += [dropout(rng)] if rng.integers(4) == 0 else []
        parts += [dense(rng)]
    if rng.integers(6) == 0:
        parts += [("Identity", lambda s: s.Identity())]
    return chain(parts), (5,)


def convolution(rng, ndim, kinds=("Conv", "Conv", "ConvLocal", "ConvTranspose")):
    keep = kinds == "keep"
    kind = "Conv" if keep else str(rng.choice(kinds))
    size = tuple(int(v) for v in rng.integers(1, 4, ndim))
    steps = tuple(int(v) for v in rng.integers(1, 3, ndim)) if rng.integers(3) == 0 else None
    padding = str(rng.choice(["SAME", "SAME", "CIRCULAR", "VALID"]))
    if keep:
        steps, padding = None, "SAME"
    if kind == "ConvTranspose" and padding == "CIRCULAR":
        padding = "SAME"
    W, b = round(float(rng.uniform(0.6, 1.6)), 2), rng.choice([None, 0.1, 0.4])
    standard = str(rng.choice(["ntk", "ntk", "standard"]))
    return kind, lambda s: getattr(s, kind)(3, size, steps, s.Padding[padding], W, b, parameterization=standard)


def attention(rng):
    linear = bool(rng.integers(2))
    mechanism = str(rng.choice(["SOFTMAX", "IDENTITY", "ABS", "RELU"])) if linear else "IDENTITY"
    embedding = str(rng.choice(["NONE", "SUM", "CONCAT"]))
    options = {
        "linear_scaling": linear,
        "W_key_std": round(float(rng.uniform(0.5, 1.5)), 2),
        "W_out_std": round(float(rng.uniform(0.5, 1.5)), 2),
        "b_std": rng.choice([None, 0.2]),
        "pos_emb_p_norm": int(rng.integers(1, 3)),
        "pos_emb_decay_fn": _decay if rng.integers(2) else None,
        "n_chan_pos_emb": int(rng.integers(1, 4)) if embedding == "CONCAT" else None,
        "W_pos_emb_std": 0.7,
        "val_pos_emb": bool(rng.integers(2)),
    }
    return f"Attention({mechanism}, {embedding})", lambda s: s.GlobalSelfAttention(
        3,
        3,
        3,
        2,
        attention_mechanism=s.AttentionMechanism[mechanism],
        pos_emb_type=s.PositionalEmbedding[embedding],
        **options,
    )


def pool(rng, ndim):
    kind = str(rng.choice(["AvgPool", "SumPool"]))
    size = tuple(int(v) for v in rng.integers(1, 3, ndim))
    steps = tuple(int(v) for v in rng.integers(1, 3, ndim)) if rng.integers(2) else None
    padding = str(rng.choice(["SAME", "CIRCULAR", "VALID"]))
    more = {"normalize_edges": bool(rng.integers(2)) and padding == "SAME"} if kind == "AvgPool" else {}
    return kind, lambda s: getattr(s, kind)(size, steps, padding, **more)


def linear(rng, ndim):
    """Fixed maps of positions."""
    which = int(rng.integers(4))
    factor, row = round(float(rng.normal()), 2), rng.normal(size=3)
    names = ["DotGeneral", "Index", "DotGeneral row", "Index crop"]
    makes = [
        lambda s: s.DotGeneral(rhs=factor),
        lambda s: s.Index(s.Slice[:, ::2]),
        lambda s: s.DotGeneral(rhs=jnp.asarray(row), dimension_numbers=(((1,), (0,)), ((), ()))),
        lambda s: s.Index(s.Slice[1:, ..., :]),
    ]
    parts = [(names[which], makes[which])]
    return chain([("Index3", lambda s: s.Index(s.Slice[:, :3])), *parts]) if which == 2 else parts[0]


def spatial(rng, ndim):
    """A network on positions, and whether it takes graphs."""
    graph = rng.integers(5) == 0
    first = dense(rng, 3) if graph or rng.integers(4) == 0 else convolution(rng, ndim)
    parts, kwargs = [first], {}
    if graph:
        parts += [("Aggregate", lambda s: s.Aggregate(1))]
        kwargs["pattern"] = True
    if rng.integers(4) == 0:
        axes = (1, -1) if rng.integers(2) else (-1,)
        parts += [("LayerNorm", lambda s: s.LayerNorm(axes))]
    if rng.integers(4) == 0 and not graph:
        name, make, gaussian = branches(rng, lambda: chain([activation(rng, False), convolution(rng, ndim, "keep")]))
        parts += [(name, make)] if gaussian else [(name, make), dense(rng, 3)]
    parts += [activation(rng)]
    after = int(rng.integers(5))
    if after == 0:
        parts += [attention(rng), activation(rng, steep=False)]
    elif after == 1:
        parts += [pool(rng, ndim)]
    elif after == 2:
        parts += [linear(rng, ndim)]
    elif after == 3 and not graph:
        parts += [convolution(rng, ndim), activation(rng, steep=False)]
    end = int(rng.integers(4))
    tail = [("Flatten", lambda s: s.Flatten()), ("GlobalAvgPool", lambda s: s.GlobalAvgPool())]
    tail += [("GlobalSumPool", lambda s: s.GlobalSumPool())]
    if end < 3:
        parts += [tail[end], dense(rng)]
    return chain(parts), (4,) if ndim == 1 else (4, 3), kwargs


def kernel_case(seed, kinds):
    """A kernel of a random network, with masks, graphs, ``x2`` and ``get`` at random."""
    rng = np.random.default_rng(seed)
    kind, kwargs = str(rng.choice(kinds)), {}
    if kind == "vectors":
        (name, build), shape = vectors(rng)
    else:
        (name, build), sizes, kwargs = spatial(rng, 1 if kind == "line" else 2)
        shape = (*sizes, 2)
    x1, x2 = rng.normal(size=(4, *shape)), rng.normal(size=(3, *shape))
    x2[-1], x1[-1] = x1[0], 2 * x1[1]
    alone = rng.integers(2) == 0
    if kind != "vectors" and rng.integers(3) == 0:
        kwargs["mask_constant"] = 9.0
        x1[0, 2:], x2[1, :1] = 9.0, 9.0
    if "pattern" in kwargs:
        one, two = (rng.integers(0, 2, (n, 4, 4)) for n in (4, 3))
        kwargs["pattern"] = (one, one if alone else two)
    get = rng.choice(["both", "NNGP", "ntk"])

    def run(module):
        kernel_fn = build(module.stax)[2]

        def kernels(x1, x2, kwargs):
            found = kernel_fn(x1, x2, None, **kwargs)
            found = found.reverse() if getattr(found, "is_reversed", False) else found
            names = {"both": ("nngp", "ntk", "cov1"), "NNGP": ("nngp", "cov2"), "ntk": ("ntk",)}[str(get)]
            return {n: v for n in names if (v := getattr(found, n)) is not None and not (n == "cov2" and alone)}

        return quickly(kernels)(x1, None if alone else x2, kwargs)

    masked = " masked" if "mask_constant" in kwargs else ""
    return Case(f"{seed} {name}{masked}", run)


def predict_case(seed):
    rng = np.random.default_rng(seed)
    n, m, c = (int(v) for v in rng.integers(2, 6, 3))
    x, y, z = rng.normal(size=(n, 4)), rng.normal(size=(n, c)), rng.normal(size=(m, 4))
    reg = float(rng.choice([1e-3, 0.1]))
    absolute, rate = bool(rng.integers(2)), float(rng.uniform(0.5, 1.5))
    t = [None, 1.5, np.array([0.0, 0.7, 20.0]), np.array([[0.5], [2.0]])][int(rng.integers(4))]
    which = str(rng.choice(["mse", "gp", "ensemble", "loss", "momentum", "rate"]))
    kernel = x @ x.T / 4 + np.eye(n), z @ x.T / 4, z @ z.T / 4 + np.eye(m)
    starts = rng.normal(size=(n, c)), rng.normal(size=(m, c))
    test, cov = bool(rng.integers(2)), bool(rng.integers(2))
    get = [None, "nngp", "ntk", ("ntk", "nngp")][int(rng.integers(4))]

    def run(module):
        p, s = module.predict, module.stax
        if which == "mse":
            predict = p.gradient_descent_mse(kernel[0], y, rate, reg, absolute)
            return predict(t, starts[0], *((starts[1], kernel[1]) if test else ()))
        if which == "gp":
            both = [_both(k) for k in kernel]
            predict = p.gp_inference(both[0], y, reg, absolute)
            return predict(get, both[1], both[2] if cov else None)
        if which == "ensemble":
            kernel_fn = s.serial(s.Dense(8, 1.2, 0.1), s.Relu(), s.Dense(1))[2]
            predict = p.gradient_descent_mse_ensemble(kernel_fn, x, y, rate, reg, absolute)
            return predict(t, z if test else None, get, cov)
        if which == "rate":
            return p.max_learning_rate(kernel[0], n * c, float(test) / 2)
        momentum = 0.9 if which == "momentum" else None
        loss = lambda f, y: 0.5 * jnp.mean((f - y) ** 4)  # noqa: E731
        predict = p.gradient_descent(loss, kernel[0], y, rate, momentum)
        times = 1.5 if t is None else t if np.ndim(t) < 2 else 2.0
        return predict(times, starts[0], *((starts[1], kernel[1]) if test else ()))

    return Case(f"{seed} predict {which}", run)


def _both(k):
    from dynamics.theory.predict import Gaussians

    return Gaussians(nngp=jnp.asarray(k), ntk=2 * jnp.asarray(k))


def empirical_case(seed):
    rng = np.random.default_rng(seed)
    shape = (3, 2) if rng.integers(2) else (3,)
    x1, x2 = rng.normal(size=(3, *shape)), rng.normal(size=(2, *shape))
    alone, which = bool(rng.integers(2)), str(rng.choice(["ntk", "nngp", "kernel", "vp", "linearize", "taylor"]))
    width, outputs = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    roles = rng.integers(3, size=len(shape))
    trace = tuple(1 + i for i, role in enumerate(roles) if role == 0)
    diagonal = tuple(1 + i for i, role in enumerate(roles) if role == 1)
    w, v = rng.normal(size=(shape[-1], width)), rng.normal(size=(width, outputs))
    get = [None, "ntk", "NNGP", ("ntk", "nngp"), ("ntk",)][int(rng.integers(5))]
    tangent = rng.normal(size=((3 if alone else 2), *shape[:-1], outputs))
    degree = int(rng.integers(1, 4))

    def f(params, x, **kwargs):
        return jnp.tanh(x @ params["w"]) @ params["v"] + 0.1 * jnp.sum(params["w"])

    def run(module):
        params, other = {"w": jnp.asarray(w), "v": jnp.asarray(v)}, None if alone else x2
        if which == "ntk":
            return module.empirical_ntk_fn(f, trace, diagonal, implementation=1)(x1, other, params)
        if which == "nngp":
            return module.empirical_nngp_fn(f, trace, diagonal)(x1, other, params)
        if which == "kernel":
            return module.empirical_kernel_fn(f, trace, diagonal, implementation=1)(x1, other, get, params)
        if which == "vp":
            return module.empirical_ntk_vp_fn(f, x1, other, params)(tangent)
        moved = jax.tree.map(lambda p: 1.1 * p + 0.01, params)
        if which == "linearize":
            return module.linearize(f, params)(moved, x1)
        return module.taylor_expand(f, params, degree)(moved, x1)

    return Case(f"{seed} {which} {trace} {diagonal}", run)


MAKERS = {
    "vectors": functools.partial(kernel_case, kinds=["vectors"]),
    "line": functools.partial(kernel_case, kinds=["line"]),
    "image": functools.partial(kernel_case, kinds=["image"]),
    "predict": predict_case,
    "empirical": empirical_case,
}


def _f(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


TEMPLATES = {
    "relu": lambda m, d, s, o: s.serial(s.Dense(4, o[0], o[1]), s.ABRelu(-o[2], o[3]), s.Dense(1, o[4]))[2](
        *d["xz"], "ntk"
    ),
    "erf": lambda m, d, s, o: s.serial(s.Dense(4, o[0], o[1]), s.Erf(o[2], o[3], o[4]), s.Dense(1))[2](*d["xz"], "ntk"),
    "sin": lambda m, d, s, o: s.serial(s.Dense(4, o[0], o[1]), s.Sin(o[2], o[3], o[4]), s.Dense(1))[2](*d["xz"], "ntk"),
    "sum": lambda m, d, s, o: s.serial(
        s.FanOut(2), s.parallel(s.Dense(4, o[0], o[1]), s.Dense(4, o[2])), s.FanInSum(), s.Rbf(o[3]), s.Dense(1)
    )[2](*d["xz"], "ntk"),
    "mse": lambda m, d, s, o: m.predict.gradient_descent_mse(d["k"], d["y"], o[0], o[1])(o[2], d["f"]),
    "test": lambda m, d, s, o: m.predict.gradient_descent_mse(d["k"], d["y"], o[0], o[1])(
        10 * o[:3], d["f"], d["g"], d["c"]
    ),
    "gp": lambda m, d, s, o: m.predict.gp_inference(d["k"], d["y"], o[0])("ntkgp", d["c"], d["t"]),
    "ensemble": lambda m, d, s, o: m.predict.gradient_descent_mse_ensemble(
        s.Dense(1, o[0], o[1])[2], d["xz"][0], d["y"], diag_reg=o[2]
    )(o[3], d["xz"][1], ("ntk", "nngp"), True),
    "empirical ntk": lambda m, d, s, o: m.empirical_ntk_fn(_f, (), (1,), implementation=1)(*d["xz"], d["p"]),
    "empirical nngp": lambda m, d, s, o: m.empirical_nngp_fn(_f, (1,))(*d["xz"], d["p"]),
    "empirical both": lambda m, d, s, o: m.empirical_kernel_fn(_f, implementation=1)(*d["xz"], ("ntk", "nngp"), d["p"]),
    "taylor": lambda m, d, s, o: m.taylor_expand(_f, d["p"], 2)(jax.tree.map(lambda p: p + o[0], d["p"]), d["xz"][0]),
}


KEEPS = ("mse", "test")
"""Templates that the original cannot trace: it keeps values of the training set."""


def drawn(seed):
    """Random data and options for a template."""
    rng = np.random.default_rng(seed)
    x, z, root = rng.normal(size=(4, 3)), rng.normal(size=(3, 3)), rng.normal(size=(4, 6))
    return {
        "xz": (x, z),
        "k": root @ root.T + np.eye(4),
        "c": rng.normal(size=(3, 4)),
        "t": np.eye(3) + 1,
        "y": rng.normal(size=(4, 2)),
        "f": rng.normal(size=(4, 2)),
        "g": rng.normal(size=(3, 2)),
        "p": {"w": rng.normal(size=(3, 4)), "v": rng.normal(size=(4, 2))},
        "o": rng.uniform(0.3, 1.2, 6),
    }
