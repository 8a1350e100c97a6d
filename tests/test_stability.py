"""Thresholds against each optimiser on a quadratic, and preconditioners against the updates of optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynamics import stability
from dynamics.evolve import descent, simulate
from dynamics.losses import half_mse
from dynamics.observe import preconditioned_sharpness
from dynamics.types import Batch, Objective


def growth(optimizer, curvature, steps=400):
    """|w| after ``steps`` updates on ``curvature w^2 / 2`` from 1, over that of a start: > 1 when unstable."""
    w = jnp.ones(())
    state = optimizer.init(w)

    def body(_, carry):
        w, state = carry
        update, state = optimizer.update(curvature * w, state, w)
        return w + update, state

    w, _ = jax.lax.fori_loop(0, steps, body, (w, state))
    return abs(float(w))


def ema(eta, b1):
    """Adam with P frozen to 1 and without bias correction."""
    return optax.chain(optax.ema(b1, debias=False), optax.scale(-eta))


@pytest.mark.parametrize(
    ("optimizer", "threshold"),
    [
        (optax.sgd(0.1), stability.gradient_descent_threshold(0.1)),
        (optax.sgd(0.1, momentum=0.9), stability.momentum_threshold(0.1, 0.9)),
        (optax.sgd(0.1, momentum=0.9, nesterov=True), stability.momentum_threshold(0.1, 0.9, nesterov=True)),
        (ema(0.1, 0.9), stability.adam_threshold(0.1, 0.9)),
        (ema(0.1, 0.0), stability.adam_threshold(0.1, 0.0)),
    ],
)
def test_threshold_separates_decay_from_growth(x64, optimizer, threshold):
    assert growth(optimizer, 0.97 * threshold) < 0.1
    assert growth(optimizer, 1.03 * threshold) > 10


def test_adam_preconditioner_is_the_update_s_denominator(x64):
    """update = -eta (mu without its bias correction) / P: P takes the first moment's correction in."""
    eta, b1, b2, eps = 0.1, 0.9, 0.99, 1e-6
    optimizer = optax.adam(eta, b1, b2, eps)
    params = {"w": jnp.arange(3.0)}
    state = optimizer.init(params)
    for scale in (1.0, -2.0, 0.5):
        gradient = {"w": scale * jnp.array([1.0, 2.0, 3.0])}
        update, state = optimizer.update(gradient, state, params)
    p = stability.adam_preconditioner(state, b1=b1, b2=b2, eps=eps)
    np.testing.assert_allclose(update["w"], -eta * state[0].mu["w"] / p["w"], rtol=1e-12)


def test_rmsprop_preconditioner_is_the_update_s_denominator(x64):
    optimizer = optax.rmsprop(0.1, decay=0.9, eps=1e-6)
    params = jnp.arange(3.0)
    gradient = jnp.array([1.0, -2.0, 3.0])
    update, state = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(update, -0.1 * gradient / stability.rmsprop_preconditioner(state, eps=1e-6), rtol=1e-12)


def test_preconditioner_needs_one_state():
    with pytest.raises(ValueError, match=r"^opt_state: got 0"):
        stability.adam_preconditioner(optax.sgd(0.1).init(jnp.ones(2)))


def test_shampoo_root_squared_is_the_update(x64):
    """(P^-1/2)^2 G = L^-1/4 G R^-1/4 on a full-rank factor pair."""
    rng = np.random.default_rng(0)
    g = jnp.asarray(rng.normal(size=(3, 4)))
    left, right = g @ g.T + jnp.eye(3), g.T @ g + jnp.eye(4)

    def power(m, p):
        values, vectors = np.linalg.eigh(m)
        return (vectors * values**p) @ vectors.T

    root = stability.shampoo_inverse_root(left, right)
    np.testing.assert_allclose(root(root(g)), power(left, -0.25) @ g @ power(right, -0.25), atol=1e-9)


def test_shampoo_roots_of_a_network_are_its_matrices_roots(x64):
    rng = np.random.default_rng(0)
    params = {"b": jnp.zeros(3), "w": jnp.zeros((2, 3))}
    left, right = (jnp.asarray(m @ m.T + np.eye(len(m))) for m in (rng.normal(size=(2, 2)), rng.normal(size=(3, 3))))
    v = jnp.asarray(rng.normal(size=9))
    found = stability.shampoo_inverse_roots(params, [None, (left, right)])(v)
    np.testing.assert_array_equal(found[:3], v[:3])
    np.testing.assert_allclose(found[3:], stability.shampoo_inverse_root(left, right)(v[3:]), rtol=1e-12)
    with pytest.raises(ValueError, match=r"^factors: got 1; allowed"):
        stability.shampoo_inverse_roots(params, [None])
    with pytest.raises(ValueError, match=r"^factors: got sizes \(3, 2\)"):
        stability.shampoo_inverse_roots(params, [None, (right, left)])


def test_spectral_sharpness_of_the_identity_and_of_a_rank_one_form(x64):
    """<D, D> over |D|_op <= 1 is the rank; <D, M>^2 is the squared nuclear norm of M."""
    start = jax.random.normal(jax.random.key(0), (3, 4))
    np.testing.assert_allclose(stability.spectral_sharpness(lambda d: d, start), 3, rtol=1e-9)
    m = jax.random.normal(jax.random.key(1), (3, 4))
    nuclear = np.linalg.svd(m, compute_uv=False).sum()
    found = stability.spectral_sharpness(lambda d: jnp.vdot(m, d) * m, start)
    np.testing.assert_allclose(found, nuclear**2, rtol=1e-9)


def test_spectral_sharpness_needs_an_iteration():
    with pytest.raises(ValueError, match=r"^iterations: got 0"):
        stability.spectral_sharpness(lambda d: d, jnp.ones((2, 2)), 0)


@pytest.mark.parametrize(("ratio", "falls"), [(0.97, True), (1.03, False)])
def test_muon_threshold_separates_descent_from_ascent(x64, ratio, falls):
    """On ``<M, W>^2 / 2`` a step -eta polar(g) lowers the loss iff |M|_*^2 < 2 |g|_* / eta."""
    m, w = (jax.random.normal(jax.random.key(i), (3, 4)) for i in (1, 2))

    def objective(w):
        return 0.5 * jnp.vdot(m, w) ** 2

    g = jax.grad(objective)(w)
    sharpness = stability.spectral_sharpness(lambda d: jnp.vdot(m, d) * m, w)
    eta = ratio * stability.muon_threshold(1.0, g) / sharpness
    np.testing.assert_allclose(stability.muon_threshold(eta, g) * ratio, sharpness, rtol=1e-12)
    u, _, vt = jnp.linalg.svd(g, full_matrices=False)
    assert bool(objective(w - eta * u @ vt) < objective(w)) is falls


@pytest.mark.parametrize(
    ("optimizer", "extra"),
    [
        (optax.rmsprop(0.1, centered=True), "mu"),
        (optax.rmsprop(0.1, bias_correction=True), "count"),
        (optax.adam(0.1), "mu and count"),
    ],
)
def test_rmsprop_preconditioner_refuses_other_denominators(optimizer, extra):
    with pytest.raises(ValueError, match=rf"^opt_state: got .* also holds {extra}; allowed: "):
        stability.rmsprop_preconditioner(optimizer.init(jnp.ones(2)))


PARAMS = {"w": jnp.ones((4, 3)), "b": jnp.ones(()), "v": jnp.ones(5)}
FIRST, REST = {"w": True, "b": False, "v": True}, {"w": False, "b": True, "v": False}
LABELS = {"w": "a", "b": "b", "v": "a"}
ACCEPTED = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.01),
    "adam, eps": optax.adam(0.01, b1=0.5, b2=0.9, eps=1e-3),
    "adam, eps_root": optax.adam(0.01, eps=1e-6, eps_root=1e-9),
    "adam, eps_root alone": optax.adam(0.01, eps=0.0, eps_root=1e-8),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "rmsprop": optax.rmsprop(0.01),
    "rmsprop, eps outside": optax.rmsprop(0.01, eps=1e-5, eps_in_sqrt=False),
    "rmsprop, corrected": optax.rmsprop(0.01, bias_correction=True),
    "schedule": optax.adam(optax.cosine_decay_schedule(0.1, 100)),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale(-0.1)),
    "injected": optax.inject_hyperparams(optax.adamw)(learning_rate=0.1, b2=0.95, eps=1e-6),
    "masked": optax.chain(
        optax.masked(optax.adam(0.1), FIRST),
        optax.masked(optax.set_to_zero(), REST),
    ),
    "two rates": optax.multi_transform({"a": optax.adam(0.1), "b": optax.adam(0.02, eps=1e-4)}, LABELS),
    "frozen": optax.multi_transform({"a": optax.sgd(0.1), "b": optax.set_to_zero()}, LABELS),
    "layers": optax.multi_transform({"a": optax.sgd(0.1), "b": optax.sgd(0.01)}, LABELS),
}


def combination(optimizer, p_of, steps=5):
    """How far ``P u`` is from one combination of all gradients so far (and of ``P w`` by leaf), relative; the most."""
    rng, worst, seen = np.random.default_rng(3), 0.0, []

    def draw(scale):
        return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=(16, *leaf.shape))), PARAMS)

    state = jax.vmap(optimizer.init)(draw(0.0))
    for step in range(steps):
        g, w = draw(3e-4), draw(float(step))
        u, state = jax.vmap(optimizer.update)(g, state, w)
        p = jax.vmap(p_of, axis_size=16)(state)
        p = p if isinstance(p, dict) else dict.fromkeys(u, p)
        p = {
            k: np.zeros(u[k].shape) + np.reshape(p[k], (*np.shape(p[k]), *(1,) * (u[k].ndim - np.ndim(p[k]))))
            for k in u
        }
        seen.insert(0, g)
        moving = [k for k in u if np.any(u[k])]
        assert all(np.all(np.isinf(p[k])) for k in u if k not in moving)
        flat = lambda tree, keys=moving: np.concatenate([np.ravel(tree[k]) for k in keys])  # noqa: E731
        decay = [flat({k: p[k] * w[k] * (k == own) for k in moving}) for own in moving]
        columns = np.stack([*map(flat, seen), *decay], 1)
        columns = columns / np.maximum(np.abs(columns).max(0), 1e-300)
        target = flat({k: p[k] * u[k] for k in moving})
        left = target - columns @ np.linalg.lstsq(columns, target, rcond=None)[0]
        worst = max(worst, np.linalg.norm(left) / np.linalg.norm(target))
    return worst


QUICK = ("adam, eps_root", "two rates", "nesterov")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ACCEPTED])
def test_the_preconditioner_is_found_from_the_updates(name, x64):
    """By definition ``u = -rate m / P - decay w`` with m an average of gradients: no other P makes P u one."""
    assert combination(ACCEPTED[name], stability.preconditioner_of(ACCEPTED[name], PARAMS)) < 1e-5


def exported():
    found = {}
    for module in (optax, optax.contrib):
        for name in dir(module):
            made = getattr(module, name)
            if name.startswith("_") or not callable(made) or isinstance(made, type):
                continue
            for args in ((), (0.01,), (0.01, 0.9), (0.01, 0.9, 7), (optax.sgd(0.1),)):
                try:
                    optimizer = made(*args)
                    if hasattr(optimizer, "init") and hasattr(optimizer, "update"):
                        found[name] = optimizer
                        break
                except Exception:
                    continue
    return found


@pytest.mark.slow
def test_every_optimiser_of_optax_has_its_preconditioner_or_is_refused(x64):
    found, known = exported(), {}
    assert len(found) > 60
    for name, optimizer in found.items():
        for wrap in (
            lambda one: one,
            lambda one: optax.chain(one, optax.scale(-2.0)),
            lambda one: optax.chain(one, optax.scale(-1.0)),
        ):
            try:
                p_of = stability.preconditioner_of(wrap(optimizer), PARAMS)
            except ValueError as error:
                assert str(error).startswith("optimizer: got one")  # noqa: PT017
                continue
            known[name] = max(known.get(name, 0.0), combination(wrap(optimizer), p_of))
    assert {"sgd", "adam", "adamw", "rmsprop", "scale_by_adam", "scale_by_rms", "trace"} <= set(known)
    assert not {name: off for name, off in known.items() if not off < 1e-4}


def test_look_alikes_are_refused_by_name(x64):
    with pytest.raises(ValueError, match=r"ScaleByAmsgradState\) whose updates"):
        stability.preconditioner_of(optax.amsgrad(0.1))
    with pytest.raises(ValueError, match=r"MuonState.*muon_threshold"):
        stability.preconditioner_of(optax.contrib.muon(0.1), PARAMS)
    with pytest.raises(ValueError, match=r"^opt_state: got a ScaleByAmsgradState; allowed: "):
        stability.adam_preconditioner(optax.amsgrad(0.1).init(PARAMS))
    wrong = (optax.adamax(0.1), optax.radam(0.1), optax.nadam(0.1), optax.lamb(0.1), optax.adam(0.1, eps=1e-4))
    for optimizer in wrong:
        with pytest.raises(ValueError, match=r"^preconditioner: got a P that is not the optimiser's"):
            stability.check_preconditioner(optimizer, stability.adam_preconditioner, PARAMS)
    stability.check_preconditioner(optax.adamw(0.1), stability.adam_preconditioner, PARAMS)
    stability.check_preconditioner(optax.rmsprop(0.1), stability.rmsprop_preconditioner, PARAMS)
    stability.check_preconditioner(optax.sgd(0.1), lambda state: 1.0, PARAMS)


def test_steps_of_many_batches_and_live_settings_are_followed(x64):
    several, one = optax.MultiSteps(optax.adam(0.1), 2), optax.adam(0.1)
    state, inner = several.init(PARAMS), one.init(PARAMS)
    for g in (PARAMS, PARAMS):
        _, state = several.update(g, state, PARAMS)
    _, inner = one.update(PARAMS, inner, PARAMS)
    ours = stability.preconditioner_of(several, PARAMS)(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, stability.adam_preconditioner(inner))
    injected = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
    state = injected.init(PARAMS)
    _, state = injected.update(PARAMS, state, PARAMS)
    state.hyperparams["eps"] = jnp.asarray(0.5)
    p = stability.preconditioner_of(injected, PARAMS)(state)
    np.testing.assert_allclose(p["v"], 0.1 * (1.0 + 0.5), rtol=1e-6)


def test_a_look_alike_s_preconditioner_is_refused_in_a_run():
    L, batch = Objective(lambda w, x: x @ w, half_mse), Batch(jnp.eye(3), jnp.ones((3, 1)))
    for optimizer, ok in ((optax.adamax(0.1), False), (optax.adamw(0.1), True)):
        run, read = descent(L, optimizer), preconditioned_sharpness(stability.adam_preconditioner)
        if ok:
            values = simulate(run, jnp.ones((3, 1)), batch, train=read, steps=3)[1].values
            assert np.isfinite(values["preconditioned_sharpness"][-1])
            continue
        with pytest.raises(ValueError, match=r"^preconditioner: got a P that is not the optimiser's"):
            simulate(run, jnp.ones((3, 1)), batch, train=read, steps=3)
        with pytest.raises(ValueError, match=r"^optimizer: got one \(ScaleByAdamState\)"):
            simulate(run, jnp.ones((3, 1)), batch, train=preconditioned_sharpness(), steps=3)
