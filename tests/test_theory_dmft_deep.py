"""Deep mean-field theory: exact cases, the lazy limit, an independent iteration in kernel form, finite networks."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import predict, stax
from dynamics.theory.dmft import deep
from dynamics.theory.dmft.elementwise import elementwise, is_smooth

T, P, D = 13, 3, 8
Y = jnp.array([1.0, -1.0, 1.0])


def inputs(key=3):
    x = jax.random.normal(jax.random.key(key), (P, D))
    return x / jnp.linalg.norm(x, axis=1, keepdims=True) * D**0.5


solve = functools.partial(
    deep, jnp.tanh, inputs(), Y, depth=2, eta=0.1, steps=T - 1, key=jax.random.key(1), samples=1000, draws=16
)  # 16: a standard error of 15 degrees of freedom, so that 4 of them are rare


def linear_network(x, y, gamma, pull):
    """One linear hidden layer at infinite width: readout and fields move in the span of their start, exactly.

    ``pull [T, T, P]`` are the step sizes of the error of step s at step t; float64.
    """
    kernel, points, times = np.asarray(x @ x.T / x.shape[1], float), len(y), len(pull)
    gram = np.zeros((points + 1, points + 1))  # of the start's readout w and fields h
    gram[0, 0], gram[1:, 1:] = 1, kernel
    w, h, f = np.zeros((times, points + 1)), np.zeros((times, points, points + 1)), np.zeros((times, points))
    for t in range(times):
        w[t, 0], h[t, :, 1:] = 1, np.eye(points)
        for s in range(t):
            force = gamma * pull[t, s] * (y - f[s])
            w[t] += force @ h[s]
            h[t] += kernel @ force[:, None] * w[s]
        f[t] = h[t] @ gram @ w[t] / gamma
    return f, np.einsum("tam,mn,sbn->tasb", h, gram, h)


def test_linear_hidden_layer_is_exact():
    """Whitened draws have exact second moments, and a linear network asks for no others: float32 rounding remains.
    With momentum, and minibatches of two of the three points."""
    x, eta, momentum = inputs(), 0.1, 0.5
    weights = 1.5 * (jnp.arange(3) != jnp.arange(T - 1)[:, None] % 3)
    found = deep(
        lambda h: h, x, Y, depth=1, gamma=1.5, eta=eta, steps=T - 1, key=jax.random.key(0), samples=200,
        draws=2, momentum=momentum, sample_weights=weights,
    )  # fmt: skip
    lag = np.arange(T)[:, None] - np.arange(T)
    pull = eta * np.where(lag > 0, (1 - momentum ** np.maximum(lag, 0)) / (1 - momentum), 0)[..., None]
    f, features = linear_network(x, np.asarray(Y), 1.5, pull * np.pad(np.asarray(weights), ((0, 1), (0, 0))))
    assert abs(f[-1]).max() > 0.7
    np.testing.assert_allclose(found.f.value, f, atol=2e-5)
    np.testing.assert_allclose(found.features.value[0], features, atol=2e-4)
    assert found.f.error.max() < 1e-5
    assert not found.failed.any()


def test_small_gamma_is_the_lazy_kernel_descent():
    """gamma -> 0: kernel descent with the NTK of ``stax``, momentum and biases too; within 4 standard errors."""
    layers = [stax.Dense(1, 1.0, 0.5), stax.Tanh()] * 2 + [stax.Dense(1, 1.0, 0.5)]
    kernel = stax.serial(*layers).kernel(inputs(), None, "ntk")
    found = solve(gamma=1e-3, momentum=0.3, b_std=0.5)
    steps = predict.gradient_descent_mse_steps(kernel, Y[:, None], learning_rate=0.1 * P, momentum=0.3)
    lazy = steps(jnp.arange(T))[..., 0]
    error = 4 * found.f.error + 1e-3 * jnp.abs(lazy)  # the share gamma moves, of order gamma
    assert jnp.all(jnp.abs(found.f.value - lazy) <= error)
    assert jnp.all(jnp.abs(found.ntk.value[0] - kernel) <= 4 * found.ntk.error[0])
    assert jnp.abs(found.f.value - steps(jnp.arange(T) // 2)[..., 0]).max() > 0.1  # half as many steps are told apart
    rich = solve(gamma=1.0, momentum=0.3, b_std=0.5, draws=2)
    assert jnp.abs(rich.f.value - lazy).max() > 20 * found.f.error.max()


def test_lanes_are_single_calls_and_one_that_diverges_fails_alone():
    """A sweep of learning rates is a vmap; only the rate whose numbers overflow is marked, and it has no mean."""
    rates = jnp.array([0.1, 1e30])
    lanes = jax.vmap(lambda eta: solve(eta=eta, gamma=1.0, draws=2))(rates)
    alone = solve(gamma=1.0, draws=2)
    np.testing.assert_allclose(lanes.f.value[0], alone.f.value, atol=2e-4)
    assert lanes.failed.tolist() == [[False, False], [True, True]]
    assert lanes.f.n.tolist() == [2, 0]
    assert jnp.isnan(lanes.f.value[1]).all()


def test_rounding_takes_neither_small_gamma_nor_momentum_near_one():
    """Fields that move by less than a unit in the last place, and a momentum that float32 takes for 1; same draws."""
    lazy, lazier = (solve(gamma=gamma, draws=2).f.value for gamma in (1e-4, 1e-9))
    np.testing.assert_allclose(lazier, lazy, atol=1e-3)
    near, nearer = (solve(gamma=1.0, momentum=momentum, draws=2).f.value for momentum in (1 - 1e-5, 1 - 1e-9))
    np.testing.assert_allclose(nearer, near, atol=1e-3)
    assert abs(near - lazy).max() > 0.1


@pytest.mark.parametrize(
    ("bad", "error", "says"),
    [
        ({"activation": jnp.sign}, ValueError, "activation: got one whose derivative does not integrate"),
        ({"activation": jax.nn.softmax}, ValueError, "does not act entry by entry"),
        ({"activation": lambda h: h - jnp.mean(h, 0)}, ValueError, "does not act entry by entry"),
        ({"activation": lambda h: jnp.sort(h, 0)}, ValueError, "does not act entry by entry"),
        ({"activation": lambda h: jnp.tanh(h) + 0.005 * jnp.sign(h)}, ValueError, "does not integrate"),
        ({"activation": jnp.log}, ValueError, "not finite"),
        ({"activation": lambda h: h > 0}, ValueError, "gives bool"),
        ({"activation": stax.Dense(3)}, ValueError, "activation: got .*fails on an array"),
        ({"activation": 3}, TypeError, "activation: got int"),
        ({"gamma": 0.0}, ValueError, "gamma: got 0.0; allowed: a number > 0"),
        ({"gamma": jnp.ones(2)}, ValueError, "gamma: got shape"),
        ({"eta": np.inf}, ValueError, "eta: got inf"),
        ({"momentum": 1.0}, ValueError, "momentum: got 1.0; allowed: a number >= 0 and < 1"),
        ({"b_std": -1.0}, ValueError, "b_std: got -1.0"),
        ({"y": jnp.ones(4)}, ValueError, "x, y: got shapes"),
        ({"y": jnp.array([1.0, np.nan, 1.0])}, ValueError, "y: got values that are not finite"),
        ({"depth": 0}, ValueError, "depth: got 0"),
        ({"steps": 2.5}, ValueError, "steps: got 2.5"),
        ({"samples": 2e3}, ValueError, "samples: got 2000.0; allowed: an integer"),
        ({"gamma": "rich"}, TypeError, "gamma: got 'rich'; allowed: a number > 0"),
        ({"x": jnp.ones((P, 0))}, ValueError, "P and D at least 1"),
        ({"sample_weights": -jnp.ones((T - 1, P))}, ValueError, "sample_weights: got values that are negative"),
        ({"depth": 1, "x": inputs()[:1], "y": Y[:1], "nodes": 400}, ValueError, "integers from 4 to 200"),
        ({"samples": 100}, ValueError, "samples: got 100; allowed: more than 168"),
        ({"key": None}, ValueError, "key: got None"),
        ({"nodes": 9}, ValueError, "nodes: got 9 for depth 2"),
        ({"activation": jax.nn.relu, "depth": 1, "nodes": 9}, ValueError, "nodes: got 9 for an activation with a kink"),
        ({"responses": "no"}, ValueError, "responses: got 'no'"),
        ({"sample_weights": jnp.ones(P)}, ValueError, "sample_weights: got shape"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused(bad, error, says):
    arguments = {"activation": jnp.tanh, "x": inputs(), "y": Y, "depth": 2, "gamma": 1.0, "eta": 0.1, "steps": T - 1}
    with pytest.raises(error, match=says):
        inspect.unwrap(deep)(**arguments | {"key": jax.random.key(0)} | bad)


def test_an_activation_made_twice_is_one():
    """So that a second ``stax.Relu()`` runs the program of the first; others stay apart, and small kinks are seen."""
    assert elementwise(stax.Relu()) is elementwise(stax.Relu())
    assert elementwise(stax.LeakyRelu(0.1)) is not elementwise(stax.LeakyRelu(0.2))
    assert is_smooth(elementwise(jnp.tanh))
    assert not is_smooth(elementwise(lambda h: jnp.maximum(h, 0.98 * h)))


@pytest.mark.slow
def test_quadrature_meets_draws():
    """One hidden layer, two points: nodes and draws give one answer."""
    x, y = jnp.array([[1.0, 1.0], [1.0, 0.0]]), jnp.array([1.0, -1.0])
    limit = functools.partial(deep, jnp.tanh, x, y, depth=1, gamma=1.0, eta=0.2, steps=8)
    exact, drawn = limit(nodes=80), limit(key=jax.random.key(0), samples=10_000, draws=16)
    for name in ("f", "loss", "features", "gradients"):
        one, two = getattr(exact, name), getattr(drawn, name)
        assert jnp.all(jnp.abs(one.value - two.value) <= 4 * jnp.hypot(two.error, one.error) + 1e-5), name


@pytest.mark.slow
def test_kinks_meet_the_first_step_by_hand():
    """ReLU: outputs after one step, of a hidden layer written out, over 4e6 neurons; needs no second derivative."""
    x, y, eta = jnp.array([[1.0, 1.0], [1.0, 0.0]]), jnp.array([1.0, -1.0]), 0.2
    found = deep(
        jax.nn.relu, x, y, depth=1, gamma=1.0, eta=eta, steps=1, key=jax.random.key(0), samples=20_000, draws=16
    )

    def by_hand(key):
        e, w = jax.random.normal(key, (200_000, 2)), jax.random.normal(jax.random.fold_in(key, 1), (200_000, 1))
        kernel = x @ x.T / 2
        u = e @ jnp.linalg.cholesky(kernel).T
        h = u + eta * ((u > 0) * w * y) @ kernel
        return jnp.mean((w + eta * jax.nn.relu(u) @ y[:, None]) * jax.nn.relu(h) - w * jax.nn.relu(u), 0)

    draws = jax.lax.map(by_hand, jax.random.split(jax.random.key(1), 20))
    error = jnp.hypot(jnp.std(draws, 0, ddof=1) / 20**0.5, found.f.error[1])
    assert jnp.all(jnp.abs(jnp.mean(draws, 0) - found.f.value[1]) <= 4 * error)
    assert error.max() < 1e-3


@pytest.mark.slow
def test_the_pass_is_the_fixed_point_of_the_equations_in_kernel_form(x64):
    """The equations as they are printed, by iteration, with responses from Jacobians; both sides by Monte Carlo."""
    times, gamma, eta, x = 5, 2.0, 0.25, inputs()
    found = deep(
        jnp.tanh, x, Y, depth=2, gamma=gamma, eta=eta, steps=times - 1, key=jax.random.key(1), samples=20_000, draws=8
    )
    draws = [iterated(jax.random.key(seed), x, Y, gamma, eta, times) for seed in range(8)]
    residual = draws[0][3]
    assert residual[0] > 0.1  # of the lazy start
    assert residual[-1] < 1e-10  # as many iterations as steps: the equations are causal
    for number, name in enumerate(("f", "features", "gradients")):
        rows, theory = np.stack([draw[number] for draw in draws]), getattr(found, name)
        error = np.hypot(rows.std(0, ddof=1) / 8**0.5, theory.error)
        z = (rows.mean(0) - theory.value) / np.where(error > 1e-9, error, 1)
        # 8 draws: t-distributed with about 14 degrees of freedom, 450 entries that depend on few Gaussians
        assert np.abs(z).max() < 6, name
        assert np.mean(z**2) < 3, name


def iterated(key, x, y, gamma, eta, times, samples=4000):
    """``f``, ``features``, ``gradients`` of two hidden tanh layers and the residual of each iteration."""
    points, n = len(y), times * len(y)
    gaussians = jax.random.normal(key, (2, 2, samples, n))
    start = jnp.broadcast_to(x @ x.T / x.shape[1], (times, times, points, points)).transpose(0, 2, 1, 3)
    slope = jax.grad(jnp.tanh)

    def fields(u, r, a, b, phi, g_above, error):
        """``phi(h)`` and g ``[n]`` of one site."""
        u, r, h, g = u.reshape(times, points), r.reshape(times, points), [], []
        for t in range(times):
            now = u[t]
            for s in range(t):
                now = now + gamma * (a[t, :, s] + eta * phi[t, :, s] * error[s]) @ g[s]
            h.append(now)
            z = r[t] + gamma * b[t, :, t] @ jnp.tanh(h[t])
            for s in range(t):
                z = z + gamma * (b[t, :, s] + eta * g_above[t, :, s] * error[s]) @ jnp.tanh(h[s])
            g.append(jnp.vectorize(slope)(now) * z)
        return jnp.tanh(jnp.stack(h)).reshape(n), jnp.stack(g).reshape(n)

    @jax.jit
    def iterate(state):
        f, _, gradients, _, b = state
        error, zero, ones = y - f, jnp.zeros((times, points) * 2), jnp.ones((times, points) * 2)

        def layer(number, below, above, a, b, r):
            root = jnp.linalg.cholesky(below.reshape(n, n) + 1e-11 * jnp.eye(n))
            u = gaussians[number, 0] @ root.T
            if r is None:
                r = gaussians[number, 1] @ jnp.linalg.cholesky(above.reshape(n, n) + 1e-11 * jnp.eye(n)).T

            def one(u, r):
                return fields(u, r, a, b, below, above, error)

            value, g = jax.vmap(one)(u, r)
            jacobians = jax.vmap(jax.jacfwd(lambda u, r: one(u, r), (0, 1)))(u, r)
            to_r, to_u = jacobians[0][1].mean(0) / gamma, jacobians[1][0].mean(0) / gamma
            shape = (times, points) * 2
            return (
                u,
                value,
                (value.T @ value / samples).reshape(shape),
                (g.T @ g / samples).reshape(shape),
                to_r.reshape(shape),
                to_u.reshape(shape),
            )

        _, _, phi1, g1, a_new, _ = layer(0, start, gradients[1], zero, b, None)
        w0 = gaussians[1, 1, :, :1]
        u, value, phi2, g2, _, b_new = layer(1, phi1, ones, a_new, zero, jnp.broadcast_to(w0, (samples, n)))
        learnt = eta * jnp.stack(
            [sum(phi2[t, :, s] @ error[s] for s in range(t)) + jnp.zeros(points) for t in range(times)]
        )
        f = (w0 * (value - jnp.tanh(u))).mean(0).reshape(times, points) / gamma + learnt
        return f, jnp.stack([phi1, phi2]), jnp.stack([g1, g2]), a_new, b_new

    def lazy(number):
        return jnp.broadcast_to(0.5 * jnp.eye(points), (times, times, points, points)).transpose(0, 2, 1, 3)

    guess, zero = jnp.stack([lazy(0), lazy(1)]), jnp.zeros((times, points) * 2)
    state, residual = (jnp.zeros((times, points)), guess, guess, zero, zero), []
    for _ in range(3 * times):
        new = iterate(state)
        residual.append(max(float(jnp.abs(one - two).max()) for one, two in zip(new, state)))
        state = new
    return *(np.asarray(value) for value in state[:3]), residual


def trained(key, nets, depth, width, gamma, eta):
    """``f [nets, T, P]`` and the kernels ``[nets, L, T, P, T, P]`` of tanh networks of finite width."""
    x, sizes = inputs(), [D, *[width] * depth]

    def hidden(weights):
        h = [x @ weights[0].T / D**0.5]
        for w in weights[1:-1]:
            h.append(jnp.tanh(h[-1]) @ w.T / width**0.5)
        return h

    def output(weights):
        return jnp.tanh(hidden(weights)[-1]) @ weights[-1] / (gamma * width)

    def read(weights):
        h = hidden(weights)
        g = [(1 - jnp.tanh(h[-1]) ** 2) * weights[-1]]
        for h_l, w in zip(h[-2::-1], weights[-2:0:-1]):
            g.insert(0, (1 - jnp.tanh(h_l) ** 2) * (g[0] @ w) / width**0.5)
        return jnp.tanh(jnp.stack(h)), jnp.stack(g)

    @jax.jit
    def one(key):
        keys = jax.random.split(key, depth + 1)
        weights = [jax.random.normal(k, (b, a)) for k, a, b in zip(keys, sizes, sizes[1:])]
        weights.append(jax.random.normal(keys[-1], (width,)))
        origin = output(weights)

        def step(weights, _):
            loss = jax.grad(lambda w: 0.5 * jnp.sum((output(w) - origin - Y) ** 2))(weights)
            moved = jax.tree.map(lambda w, g: w - eta * gamma**2 * width * g, weights, loss)
            return moved, (output(weights) - origin, *read(weights))

        _, (f, features, gradients) = jax.lax.scan(step, weights, None, length=T)
        return f, *(jnp.einsum("tlan,slbn->ltasb", v, v) / width for v in (features, gradients))

    return [np.stack(rows) for rows in zip(*(jax.device_get(one(k)) for k in jax.random.split(key, nets)))]


def distances(nets, theory):
    """In standard errors of nets and theory together: the largest of f at any step and point, and of the kernels of
    each layer the norm of the deviation over that of the errors."""
    found = []
    for rows, limit in zip(nets, (theory.f, theory.features, theory.gradients)):
        error = np.hypot(rows.std(0, ddof=1) / len(rows) ** 0.5, np.nan_to_num(limit.error))
        off = np.abs(rows.mean(0) - limit.value)
        if off.ndim == 2:
            found.append(np.max(off[1:] / error[1:]))
        else:
            found.append(
                np.max(
                    np.linalg.norm(off.reshape(len(off), -1), axis=1)
                    / np.linalg.norm(error.reshape(len(off), -1), axis=1)
                )
            )
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 3])
def test_finite_networks_average_to_the_theory(depth):
    """32 networks of width 1000: outputs at every step and kernels of every layer within three standard errors."""
    nets = trained(jax.random.key(depth), 32, depth, 1000, 1.0, 0.12)
    theory = solve(gamma=1.0, eta=0.12, depth=depth, samples=4000)
    assert np.all(distances(nets, theory) < 3)
    assert distances(nets, solve(gamma=1e-3, eta=0.12, depth=depth))[0] > 10  # the frozen kernel


@pytest.mark.slow
def test_width_2000_and_rivals():
    """Two layers: f, kernels and loss at width 2000; single networks approach as 1/N; three wrong theories fail."""
    widths, nets = (250, 500, 1000, 2000), {}
    for width in widths:  # the first 32 of width 2000 have the gradient kernels off by 3.1 standard errors, all 128 not
        nets[width] = trained(jax.random.key(width), 128 if width == 2000 else 32, 2, width, 1.0, 0.12)
    theory = solve(gamma=1.0, eta=0.12, samples=8000)
    assert np.all(distances(nets[2000], theory) < 3)
    loss = 0.5 * np.sum((nets[2000][0].mean(0) - Y) ** 2, -1)
    np.testing.assert_allclose(theory.loss.value, loss, rtol=0.05)
    squares = [np.mean((nets[n][0] - theory.f.value) ** 2, (1, 2)) for n in widths]  # [widths][nets]
    slope = np.polyfit(np.log(widths), np.log([one.mean() for one in squares]), 1)[0]
    assert abs(slope + 1) < 0.25
    for width in widths:  # the mean lies nearer than single networks do
        assert np.mean((nets[width][0].mean(0) - theory.f.value) ** 2) < np.mean(squares[widths.index(width)]) / 8
    frozen, none, delayed = (
        solve(gamma=1e-3, eta=0.12),
        solve(gamma=1.0, eta=0.12, responses="none"),
        solve(gamma=1.0, eta=0.12, responses="delayed"),
    )
    assert distances(nets[2000], frozen)[0] > 10
    assert distances(nets[2000], none)[0] > 10
    assert distances(nets[2000], delayed)[1] > 3  # not through f


@pytest.mark.slow
def test_error_halves_when_samples_quadruple():
    """Spread over 48 draws of f and kernels: S^(-1/2)."""
    for name in ("f", "features", "gradients"):
        few, many = (
            np.sqrt(np.mean(np.nan_to_num(getattr(solve(gamma=1.0, samples=s, draws=48), name).error) ** 2))
            for s in (500, 2000)
        )
        assert 1.7 < few / many < 2.35, name  # 47 degrees of freedom of few independent numbers: 15 % on the ratio


@pytest.mark.slow
def test_momentum_minibatches_and_biases_meet_finite_networks():
    """All three at once, two layers of ``stax`` with biases, 32 nets of width 1000; f is wrong without any of them."""
    width, gamma, eta, momentum, b_std = 1000, 1.0, 0.06, 0.5, 0.5
    layers = [stax.Dense(width, 1.0, b_std), stax.Tanh()] * 2 + [stax.Dense(1, 1.0, b_std)]
    init, apply, _ = stax.serial(*layers)
    weights = 1.5 * (jnp.arange(P) != jnp.arange(T - 1)[:, None] % P)

    @jax.jit
    def one(key):
        start = init(key, (-1, D))[1]

        def output(params):
            return (apply(params, inputs()) - apply(start, inputs()))[:, 0] / (gamma * width**0.5)

        def step(state, weight):
            params, speed = state
            slope = jax.grad(lambda w: 0.5 * jnp.sum(weight * (output(w) - Y) ** 2))(params)
            speed = jax.tree.map(lambda v, g: momentum * v - eta * gamma**2 * width * g, speed, slope)
            return (jax.tree.map(jnp.add, params, speed), speed), output(params)

        return jax.lax.scan(step, (start, jax.tree.map(jnp.zeros_like, start)), jnp.pad(weights, ((0, 1), (0, 0))))[1]

    f = np.stack([one(key) for key in jax.random.split(jax.random.key(5), 32)])

    def largest(**other):
        given = {"momentum": momentum, "b_std": b_std, "sample_weights": weights} | other
        theory = solve(gamma=gamma, eta=eta, **given).f
        return np.max(np.abs(f.mean(0) - theory.value)[1:] / np.hypot(f.std(0, ddof=1) / 32**0.5, theory.error)[1:])

    assert largest() < 3
    assert min(largest(momentum=0.0), largest(b_std=0.0), largest(sample_weights=None)) > 8


@pytest.mark.slow
def test_every_reading_of_an_odd_case_meets_networks_written_otherwise():
    """GELU, biases, momentum, two points: f, both kernels by gradients to shifts, the tangent kernel by autodiff over
    all weights, at width 800. Rivals: another bias, another momentum, the late response."""
    N, nets, gamma, eta, momentum, b_std, phi = 800, 64, 1.3, 0.1, 0.4, 0.3, jax.nn.gelu
    x = jnp.array([[1.0, 0.5, -1.0, 0.2, 0.9], [0.3, -1.2, 0.4, 1.0, -0.1]])
    y, still = jnp.array([0.8, -1.1]), jnp.zeros((2, N))

    def output(p, point, shift):
        one = p["first"] @ point / 5**0.5 + b_std * p["biases"][0] + shift[0]
        two = p["second"] @ phi(one) / N**0.5 + b_std * p["biases"][1] + shift[1]
        return (p["last"] @ phi(two) / N**0.5 + b_std * p["bias"]) / (gamma * N**0.5), phi(jnp.stack([one, two]))

    def read(p):
        slopes, features = jax.vmap(lambda a: jax.grad(lambda s: output(p, a, s), has_aux=True)(still))(x)
        weights = jax.vmap(lambda a: jax.grad(lambda p: output(p, a, still)[0])(p))(x)
        flat = jnp.concatenate([leaf.reshape(2, -1) for leaf in jax.tree.leaves(weights)], 1)
        return features, gamma * N * slopes, gamma**2 * N * flat @ flat.T

    def outputs(p):
        return jax.vmap(lambda a: output(p, a, still)[0])(x)

    @jax.jit
    def one(key):
        shapes = {"first": (N, 5), "second": (N, N), "last": (N,), "biases": (2, N), "bias": ()}
        start = {name: jax.random.normal(jax.random.fold_in(key, i), s) for i, (name, s) in enumerate(shapes.items())}

        def step(state, _):
            p, speed = state
            slope = jax.grad(lambda p: 0.5 * jnp.sum((outputs(p) - outputs(start) - y) ** 2))(p)
            speed = jax.tree.map(lambda v, g: momentum * v - eta * gamma**2 * N * g, speed, slope)
            return (jax.tree.map(jnp.add, p, speed), speed), (outputs(p) - outputs(start), *read(p))

        _, (f, features, g, ntk) = jax.lax.scan(step, (start, jax.tree.map(jnp.zeros_like, start)), None, length=6)
        return f, *(jnp.einsum("taln,sbln->ltasb", v, v) / N for v in (features, g)), ntk

    rows = [np.stack(v) for v in zip(*(jax.device_get(one(k)) for k in jax.random.split(jax.random.key(77), nets)))]

    def largest(**other):
        given = {"eta": eta, "momentum": momentum, "b_std": b_std, "samples": 3000, "draws": 16} | other
        theory, off = deep(phi, x, y, depth=2, gamma=gamma, steps=5, key=jax.random.key(5), **given), []
        for nets_of, limit in zip(rows, (theory.f, theory.features, theory.gradients, theory.ntk)):
            error = np.hypot(nets_of.std(0, ddof=1) / nets**0.5, limit.error)
            off.append(np.max(np.abs(nets_of.mean(0) - limit.value)[error > 1e-9] / error[error > 1e-9]))
        return np.array(off)

    assert np.all(largest() < 3)
    assert np.all(largest(momentum=0.0) > 8)
    assert np.all(largest(b_std=0.2) > 5)
    assert largest(responses="delayed")[2] > 5
