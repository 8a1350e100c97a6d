"""The preconditioner P of an optax optimiser, from its state: by formula, or found and proved by its own updates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import split_real_and_imaginary

from dynamics.program import real_view
from dynamics.types import PyTree


def adam_preconditioner(
    opt_state: PyTree, *, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = 0.0
) -> PyTree:
    """``P = (1 - b1^t) (sqrt(nu / (1 - b2^t) + eps_root) + eps)`` from the state of ``optax.adam`` (or adamw), with
    bias correction.

    The state does not say whose it is: AdaMax, RAdam, NAdam, LAMB and ADOPT keep the same fields and move otherwise.
    ``preconditioner_of`` asks the optimiser itself; ``descent`` proves what it is given.

    Args:
        opt_state: any optax state that contains one ``ScaleByAdamState``.
        b1, b2, eps, eps_root: as given to the optimiser.

    Returns:
        A pytree like the parameters. Before the first step ``nu`` is 0 and P means nothing (it is eps).

    Raises:
        ValueError: when the state holds no, or more than one, Adam state, or one of another optimiser (AMSGrad, ...).

    Reference: Cohen et al. 2022, equation 2.
    """
    found = _find(opt_state, ("mu", "nu", "count"))
    if type(found).__name__ != "ScaleByAdamState":
        raise ValueError(f"opt_state: got a {type(found).__name__}; allowed: one of optax.adam or adamw")
    known = _Moments(0, b1, b2, eps, eps_root)
    return jax.tree.map(lambda nu: known.denominator(nu, found), found.nu)


def rmsprop_preconditioner(opt_state: PyTree, *, eps: float = 1e-8) -> PyTree:
    """``P = sqrt(nu + eps)`` from the state of ``optax.rmsprop`` with its defaults (the paper: ``sqrt(nu) + eps``).

    Args:
        opt_state: any optax state that contains one ``ScaleByRmsState``.
        eps: as given to the optimiser.

    Returns:
        A pytree like the parameters.

    Raises:
        ValueError: when the state holds no, or more than one, second-moment state, or one that subtracts or corrects
            means (``centered=True``, ``bias_correction=True``, Adam), whose denominator is another.

    Reference: Cohen et al. 2022, section 3.
    """
    found = _find(opt_state, ("nu",))
    extra = [name for name in ("mu", "count") if name in found._fields]  # a tuple has a method `count`
    if extra:
        raise ValueError(
            f"opt_state: got a second-moment state that also holds {' and '.join(extra)}; allowed: the state of "
            "optax.rmsprop without centering or bias correction"
        )
    return jax.tree.map(lambda nu: jnp.sqrt(nu + eps), found.nu)


def preconditioner_of(optimizer: Any, params: PyTree = None) -> Callable[[PyTree], PyTree]:
    """``opt_state -> P`` of an optax optimiser, found and proved by its own updates ``u = -rate m/P - decay w``.

    It is run on a few numbers in float64. What its first step tells of b1, b2 and the eps must give every later step,
    from other parameters and gradients, with m the (averaged) gradient and P that of SGD, Adam or RMSProp, leaf
    by leaf, at rates of one ratio: what merely looks like one (AMSGrad, RAdam, NAdam, AdaMax, LAMB, ...) is refused.

    Args:
        optimizer: an optax transformation, wrapped as it may be (chain, inject_hyperparams, masked, multi_transform,
            MultiSteps).
        params: the parameters, arrays or shapes, where leaves are treated differently: P is then relative to the first
            that moves, infinite where a leaf does not move.

    Returns:
        A function to a pytree like the parameters, or to 1.0 where P is that everywhere.

    Raises:
        ValueError: for any other optimiser, or one whose hyper-parameters are traced.
    """
    if hasattr(optimizer, "inner_opt"):  # optax.MultiSteps: P is that of the optimiser which it calls
        inner = preconditioner_of(optimizer.inner_opt, params)
        return lambda opt_state: inner(opt_state.inner_opt_state)
    like = {"a": np.zeros(3), "b": np.zeros(3)} if params is None else params
    flat, structure = jax.tree.flatten_with_path(like)
    keys = tuple(jax.tree_util.keystr(path) for path, _ in flat)
    shapes = tuple(jnp.shape(leaf) for _, leaf in flat)
    return _proved(optimizer, structure, keys, shapes, params is None)


def preconditioner_at(known: Callable[[PyTree], Callable[[PyTree], PyTree]]) -> Callable[[Any], PyTree]:
    """``state -> P`` of a state with ``params`` and ``opt_state``, from ``params -> opt_state -> P``; complex leaves as
    pairs, and one number for all of them spread out."""

    def at(state: Any) -> PyTree:
        params, opt_state = state.params, state.opt_state
        if any(map(real_view.is_complex, jax.tree.leaves(params))):
            keep: Any = optax.GradientTransformation(lambda tree: tree, optax.identity().update)  # pyright: ignore
            held: Any = split_real_and_imaginary(keep).init(params)
            if not hasattr(opt_state, "inner_state"):
                raise ValueError(
                    f"opt_state: got {type(opt_state).__name__} of complex parameters; allowed: that of "
                    "optax.contrib.split_real_and_imaginary(optimizer), which moves both parts"
                )
            found = known(held.inner_state)(opt_state.inner_state)
        else:
            found = known(params)(opt_state)
        if real_view.is_function(found):
            return found
        if jax.tree.structure(found).num_leaves == 1 and not jnp.shape(jax.tree.leaves(found)[0]):
            (one,) = jax.tree.leaves(found)
            return jax.tree.map(lambda w: real_view.merge([jnp.full_like(p, one) for p in real_view.split(w)]), params)
        return jax.tree.map(lambda w, p: real_view.merge(jax.tree.leaves(p)), params, found)

    return at


def check_preconditioner(optimizer: Any, preconditioner: Callable[[PyTree], PyTree], params: PyTree) -> None:
    """Raises ValueError unless P is the optimiser's: ``P u`` a sum of gradients (and of ``P w``), alike in all leaves.

    A P that is a function of vectors is taken at its word, and so is any where the optimiser cannot be tried.
    """
    if hasattr(optimizer, "inner_opt"):  # optax.MultiSteps moves by the optimiser which it calls
        outer, given = optimizer.init(params), preconditioner
        optimizer, preconditioner = optimizer.inner_opt, lambda state: given(outer._replace(inner_opt_state=state))
    flat, structure = jax.tree.flatten(params)
    shapes = tuple(jnp.shape(leaf) for leaf in flat)
    try:
        probe = _probe(optimizer, structure, tuple(map(_shrunk, shapes)))
        with jax.enable_x64(True), jax.ensure_compile_time_eval():
            found = [jax.vmap(preconditioner, axis_size=8)(state) for state in probe.states]
    except (TypeError, ValueError) as error:
        if "opt_state" in str(error):
            raise
        return
    shares: list[float] = []
    for t, tree in enumerate(found):
        wide = [np.asarray(p, float) for p in jax.tree.leaves(tree)]
        wide = wide * len(flat) if len(wide) == 1 else wide
        p = np.concatenate(
            [np.reshape(np.zeros_like(u) + _led(q, u), -1) for q, u in zip(wide, probe.u[t], strict=True)]
        )
        g = [np.concatenate([np.reshape(leaf, -1) for leaf in probe.g[s]]) for s in range(t + 1)]
        u, w = (np.concatenate([np.reshape(leaf, -1) for leaf in part[t]]) for part in (probe.u, probe.w))
        owner = np.repeat(np.arange(len(flat)), [leaf.size for leaf in probe.u[t]])
        moves = np.isfinite(p) | (u != 0)
        p, u, w, owner, g = p[moves], u[moves], w[moves], owner[moves], [leaf[moves] for leaf in g]
        weights = _weights(p * u, g[::-1], [p * w * (owner == leaf) for leaf in range(len(flat))])
        if weights is not None and t:
            shares.append(weights[1] / weights[0])
        if weights is None or not np.allclose(shares, shares[:1], 1e-4, 1e-6):
            raise ValueError(
                "preconditioner: got a P that is not the optimiser's (P u is no average of gradients); allowed: that "
                "of its own update, stability.preconditioner_of(optimizer) where it knows it"
            )


class _Moments(NamedTuple):
    """A leaf's ``P = ratio (1 - b1^t) (sqrt(nu / (1 - b2^t) + eps_root) + eps)``; without ``node`` it is ``ratio``."""

    node: int | None
    b1: Any = 0.0
    b2: Any = 0.0
    eps: Any = 0.0
    eps_root: Any = 0.0

    def denominator(self, nu: Any, node: Any) -> Any:
        t = jnp.maximum(node.count, 1) if "count" in node._fields else None
        first = 1 - self.b1**t if "mu" in node._fields else 1.0
        second = 1 - self.b2**t if t is not None else 1.0
        return first * (jnp.sqrt(nu / second + self.eps_root) + self.eps)


class _Probe(NamedTuple):
    """What an optimiser did to leaves ``[runs, *shape]``, step by step."""

    g: list[list[np.ndarray]]
    w: list[list[np.ndarray]]
    u: list[list[np.ndarray]]
    states: list[Any]


_KNOWN = ({"count", "mu", "nu"}, {"nu"}, {"count", "nu"})


_STEPS = 6


def _counts_moments(node: Any) -> bool:
    return {"count", "nu"} <= set(getattr(node, "_fields", ()))


def _later(node: Any) -> Any:
    return node._replace(count=node.count + 10**4) if _counts_moments(node) else node


def _shrunk(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(min(size, 3) for size in shape)


@functools.lru_cache(maxsize=64)
def _probe(optimizer: Any, structure: Any, shapes: tuple[tuple[int, ...], ...]) -> _Probe:
    """Six steps of eight runs from random gradients; the last two late by its moments' count (RAdam)."""
    rng, seen = np.random.default_rng(0), _Probe([], [], [], [])
    draws = [(8, *shape) for shape in shapes]
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        try:
            state = jax.vmap(optimizer.init)(jax.tree.unflatten(structure, [jnp.zeros(size) for size in draws]))
            for step in range(_STEPS):
                if step == _STEPS - 2:
                    state = jax.tree.map(_later, state, is_leaf=_counts_moments)
                g = [10 ** rng.uniform(-7, -2, size) * rng.choice([-1, 1], size) for size in draws]
                w = [step * 3**i * rng.standard_normal(size) for i, size in enumerate(draws)]
                given = (jax.tree.unflatten(structure, list(map(jnp.asarray, leaves))) for leaves in (g, w))
                given_g, given_w = given
                update, state = jax.vmap(optimizer.update)(given_g, state, given_w)
                seen.u.append([np.asarray(leaf, float) for leaf in jax.tree.leaves(update)])
                seen.g.append(g)
                seen.w.append(w)
                seen.states.append(jax.tree.map(np.asarray, state))
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
            raise ValueError(
                "optimizer: got a traced hyper-parameter; allowed: adam(L, ...), or preconditioner="
            ) from error
        except Exception as error:  # whatever a transformation raises that wants more than gradients and parameters
            raise ValueError(
                f"optimizer: got one that cannot be tried on gradients alone ({type(error).__name__}: {error}); "
                "allowed: descent(..., preconditioner=), opt_state -> P; preconditioner_of(optimizer, params)"
            ) from error
    return seen


@functools.lru_cache(maxsize=64)
def _proved(optimizer: Any, structure: Any, keys: tuple[str, ...], shapes: Any, alike: bool):
    probe = _probe(optimizer, structure, tuple(map(_shrunk, shapes)))
    try:
        with np.errstate(all="raise"), jax.ensure_compile_time_eval():  # also where it is asked for in a trace
            found = [_leaf(probe, index, key) for index, key in enumerate(keys)]
    except (ValueError, FloatingPointError) as error:
        kinds = sorted(_kinds(probe.states[-1]) - {"EmptyState", "MaskedNode"})
        muon = "; for Muon muon_threshold(eta, gradient) on spectral_sharpness" if "MuonState" in kinds else ""
        raise ValueError(
            f"optimizer: got one ({', '.join(kinds) or 'without a state'}) whose updates are not SGD's, Adam's or "
            f"RMSProp's; allowed: descent(..., preconditioner=), opt_state -> P{muon}"
        ) from error
    moving = [leaf for leaf in found if leaf is not None]
    averages = {(kind, known.b1) for kind, known, _ in moving}
    ratios = [np.ones(_STEPS) if leaf is None else moving[0][2] / leaf[2] for leaf in found]
    even = all(np.allclose(ratio, ratio[0], 1e-6) for ratio in ratios)
    uniform = len(moving) == len(found) and np.allclose(ratios, 1, 1e-6)
    uniform = uniform and all(_alike(leaf[1], moving[0][1]) for leaf in moving)
    if len(averages) != 1 or not even or (alike and not uniform):
        raise ValueError(
            "optimizer: got one that averages or scales the gradients of its leaves in different ways; allowed: one "
            "momentum and rates of one ratio; preconditioner_of(optimizer, params) where leaves are told apart"
        )
    if uniform and moving[0][1].node is None:
        return lambda opt_state: 1.0
    if alike:
        return functools.partial(_uniform, moving[0][1])
    leaves = [(None, np.inf) if leaf is None else (leaf[1], float(r[0])) for leaf, r in zip(found, ratios, strict=True)]

    def preconditioner(opt_state: PyTree) -> PyTree:
        nodes, live = _nodes(opt_state, "nu"), _live(opt_state)
        by_key = [_by_key(node.nu) for node in nodes]

        def of(key: str, shape: Any, known: _Moments | None, ratio: float):
            if known is None or known.node is None:
                return jnp.full(shape, ratio)
            if known.node >= len(nodes) or key not in by_key[known.node]:
                raise ValueError(
                    f"opt_state: got no moments of params{key}; allowed: this optimizer's over all parameters"
                )
            own = known._replace(**live)
            return ratio * own.denominator(by_key[known.node][key], nodes[known.node])

        return jax.tree.unflatten(structure, [of(k, s, *leaf) for k, s, leaf in zip(keys, shapes, leaves, strict=True)])

    return preconditioner


def _uniform(known: _Moments, opt_state: PyTree) -> PyTree:
    nodes, own = _nodes(opt_state, "nu"), known._replace(**_live(opt_state))
    return jax.tree.map(lambda nu: own.denominator(nu, nodes[0]), nodes[0].nu)


def _leaf(probe: _Probe, index: int, key: str) -> tuple[str, _Moments, np.ndarray] | None:
    """``(average, P, rates [steps])`` of one leaf; None where it never moves."""
    g, w, u = (np.stack([np.reshape(step[index], -1) for step in part]) for part in (probe.g, probe.w, probe.u))
    if not u.any():
        return None
    listed = [_nodes(state, "nu") for state in probe.states]
    places = [place for place, node in enumerate(listed[0]) if key in _by_key(node.nu)]
    traces = [[_by_key(node.trace) for node in _nodes(state, "trace")] for state in probe.states]
    if len(places) > 1 or sum(key in trace for trace in traces[0]) > 1:
        raise ValueError("opt_state: got several moments of one leaf; allowed: one")
    if not places:
        trace = [np.reshape(t[key], -1) for step in traces for t in step if key in t]
        found = [_rate(_weights(u[t], [*trace[t : t + 1], g[t]], [w[t]]), 1 + bool(trace)) for t in range(_STEPS)]
        return ("trace" if trace else "gradient"), _Moments(None), np.array(found)
    nodes = [step[places[0]] for step in listed]
    if set(nodes[0]._fields) not in _KNOWN:
        raise ValueError("opt_state: got moments of an unknown state; allowed: those of Adam's kind")
    nu = np.stack([np.reshape(_by_key(node.nu)[key], -1) for node in nodes])
    m, b1, b2 = g, 0.0, 0.0
    if "mu" in nodes[0]._fields:
        m = np.stack([np.reshape(_by_key(node.mu)[key], -1) for node in nodes])
        b1 = 1 - _one(m[0] / g[0])
        _require(np.allclose(m[1:], b1 * m[:-1] + (1 - b1) * g[1:], 1e-6, 0))
    if "count" in nodes[0]._fields:
        b2 = 1 - _one(nu[0] / g[0] ** 2)
        _require(np.allclose(nu[1:], b2 * nu[:-1] + (1 - b2) * g[1:] ** 2, 1e-6, 0))
    eps, eps_root = _epsilons(np.abs(m[0] / u[0]), nu[0] / (1 - b2))
    known = _Moments(places[0], b1, b2, float(f"{eps:.6g}"), float(f"{eps_root:.6g}"))
    live = _live(jax.tree.map(lambda leaf: leaf[0], probe.states[0]))
    _require(*(np.allclose(getattr(known, name), value, 1e-3, 1e-9) for name, value in live.items()))
    rates = []
    for t, node in enumerate(nodes):
        one = node._replace(count=node.count.flat[0]) if "count" in node._fields else node
        p = np.asarray(known._replace(**live).denominator(nu[t], one), float)
        rates.append(_rate(_weights(u[t], [m[t] / p], [w[t]], 1e-4), 1))
    return ("moment" if "mu" in nodes[0]._fields else "gradient"), known, np.array(rates)


def _epsilons(r: np.ndarray, nu: np.ndarray) -> tuple[float, float]:
    """``(eps, eps_root)`` of ``r = a (sqrt(nu + eps_root) + eps)``, by least squares on the relative error."""
    rows = (
        np.stack([r**2, r, np.ones_like(r)], 1) / r[:, None]
    )  # [r^2, r, 1] . (1/a^2, -2 eps/a, eps^2 - eps_root) = nu
    size = np.abs(rows).max(0)
    (square, linear, rest), *_ = np.linalg.lstsq(rows / size, nu / r, rcond=1e-14)
    _require(square > 0)
    a = np.sqrt(size[0] / square)
    eps = max(-0.5 * a * linear / size[1], 0.0)
    at = np.array([a, eps, max(eps**2 - rest / size[2], 0.0)])
    for _ in range(20):
        root = np.sqrt(nu + at[2])
        model = at[0] * (root + at[1])
        slopes = np.stack([model / at[0], at[0] * np.ones_like(r), 0.5 * at[0] / root], 1) / model[:, None]
        size = np.abs(slopes).max(0)
        at = at + np.linalg.lstsq(slopes / size, (r - model) / model, rcond=1e-14)[0] / size
        at[1:] = np.maximum(at[1:], 0)
    least = nu.min()
    return (at[1] if at[1] > 1e-7 * np.sqrt(least) else 0.0), (at[2] if at[2] > 1e-7 * least else 0.0)


def _rate(weights: np.ndarray | None, directions: int) -> float:
    _require(weights is not None)
    rates = -np.asarray(weights)[:directions]
    _require(np.all(rates > -1e-6 * rates.max()), rates.max() > 0)
    return float(rates[0] if rates[0] > 1e-6 * rates.max() else rates[-1])


def _weights(
    update: np.ndarray, directions: Sequence[np.ndarray], decays: Sequence[np.ndarray], tolerance: float = 1e-6
) -> np.ndarray | None:
    """An update ``[samples]`` as a combination of directions and decays; None where it is none, every sample alike."""
    size = np.abs(directions[0]) + np.finfo(float).tiny
    used = [row / size for row in (*directions, *decays)]
    scale = [np.abs(row).max() or 1.0 for row in used]
    matrix = np.stack([row / top for row, top in zip(used, scale, strict=True)], 1)
    weights, *_ = np.linalg.lstsq(matrix, update / size, rcond=1e-13)
    off = np.abs(matrix @ weights - update / size)
    parts = np.abs(matrix * weights).sum(1)
    return weights / scale if np.all(off <= tolerance * np.maximum(parts, parts.max() * 1e-6)) else None


def _alike(one: _Moments, two: _Moments) -> bool:
    return one.node == two.node and (one.node is None or np.allclose(one[1:], two[1:], 1e-4, 1e-14))


def _one(values: np.ndarray) -> float:
    _require(np.ptp(values) <= 1e-6 * abs(values[0]))
    return float(f"{values[0]:.9g}")


def _require(*held: Any) -> None:
    if not all(held):
        raise ValueError("opt_state: got another optimiser's; allowed: this one's")


def _nodes(state: PyTree, field: str) -> list[Any]:
    """The named tuples of a state that have a field."""

    def holds(node: Any) -> bool:
        return field in getattr(node, "_fields", ())

    return [node for node in jax.tree.leaves(state, is_leaf=holds) if holds(node)]


def _kinds(node: Any) -> set[str]:
    """Names of the named tuples in a state."""
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, tuple | list) else ()
    own = {type(node).__name__} if hasattr(node, "_fields") else set()
    return own.union(*map(_kinds, parts))


def _by_key(tree: PyTree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _live(state: PyTree) -> dict[str, Any]:
    """Hyper-parameters of P that stand in the state (``optax.inject_hyperparams``)."""
    given = [node.hyperparams for node in _nodes(state, "hyperparams")]
    held = [{k: v for k, v in one.items() if k in ("b1", "b2", "eps", "eps_root")} for one in given]
    held = [one for one in held if one]
    _require(len(held) < 2)
    if held and "b1" not in held[0]:  # another optimiser's eps, whose place in P is its own
        return {}
    return held[0] if held else {}


def _led(p: np.ndarray, like: np.ndarray) -> np.ndarray:
    return np.reshape(p, p.shape + (1,) * (like.ndim - p.ndim)) if p.ndim else p


def _find(opt_state: PyTree, fields: tuple[str, ...]) -> Any:
    def holds(node):
        return all(hasattr(node, field) for field in fields)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=holds) if holds(node)]
    if len(found) != 1:
        raise ValueError(f"opt_state: got {len(found)} states with {', '.join(fields)}; allowed: exactly one")
    return found[0]
