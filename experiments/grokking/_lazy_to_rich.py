"""The programs of the lazy-to-rich network: cells of output scale and sample count, beside their exact reduction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.evolve import gradient_descent, lanes, log_steps
from dynamics.losses import mse
from dynamics.models.scaling import scaled
from dynamics.models.two_layer import committee, quadratic
from dynamics.observe.delay import first_step, time_ratio
from dynamics.observe.rank import effective_rank
from dynamics.observe.representation import label_alignment
from dynamics.observe.seldom import seldom
from dynamics.tasks.teachers import QuadraticTask, quadratic_teacher
from dynamics.theory import lazy_to_rich as theory
from dynamics.types import Array, Batch, Data, Dynamics, Model, Record

if TYPE_CHECKING:
    from experiments.grokking.lazy_to_rich import Config

ALIGNMENT_EVERY = 8  # recorded steps between readings of the kernel on fresh points
FALL = 0.1  # a loss has fallen when it is below this share of its value at step 0


class Lane(NamedTuple):
    """Hyper-parameters of a lane.

    ``filled`` is the share of the training rows that are samples. The other rows are zero, where network and target
    vanish, so dividing the rate and the train loss by ``filled`` gives exactly the run on the samples alone.
    """

    alpha: Array
    filled: Array
    beta: Array
    start: theory.Moments


class Side(NamedTuple):
    """The network or a theory of it, as functions of a lane and its state."""

    make: Callable[[Lane], Dynamics]
    output: Callable[[Lane, Any, Array], Array]
    moments: Callable[[Any], theory.Moments]


def run_cells(config: Config, simulate, alphas: tuple[float, ...], samples: tuple[int, ...], steps: int, suffix: str):
    """Network and theories on the same data; cells ``(alphas[i], samples[i])`` x seeds are the lanes of a program."""
    model, record_at = committee(config.width, quadratic(config.eps)), log_steps(steps)
    drawn = [draw(config, model, max(samples), seed) for seed in range(config.seeds)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
    starts = jax.jit(partial(prepare, config, model))(jnp.array(alphas), jnp.array(samples), *stacked)

    def simulated(name, side: Side, lane: Lane, start, data) -> Record:
        runs = lanes(side.make, lambda lane: partial(read, config, side, lane), data_axis=0)
        kernels = lanes(side.make, lambda lane: partial(read_alignment, config, side, lane), data_axis=0)
        readout = runs.readout if suffix else seldom(runs.readout, kernels.readout, ALIGNMENT_EVERY)
        state, key = runs.dynamics.init((lane, start)), jax.random.key(config.seed)
        return simulate(runs.dynamics, readout, state, data, steps, key, record_at, label=name + suffix)[1]

    def cells(record: Record, of: slice) -> Record:
        split = {k: np.reshape(v[:, of], (len(record_at), len(alphas), -1)) for k, v in record.values.items()}
        return record._replace(values=split)

    network = simulated("network", network_side(config, model), *starts["network"])
    predicted = simulated("theory", theory_side(config), *starts["theory"])
    every = len(alphas) * config.seeds
    records = {
        "network": cells(network, slice(None)),
        "infinite width": cells(predicted, slice(every)),
        "exact reduction": cells(predicted, slice(every, None)),
    }
    if not suffix:
        records["lazy"] = jax.jit(partial(read_lazy, config, record_at))(starts["lazy"])
    return {name + suffix: record for name, record in records.items()}


def draw(config: Config, model: Model, samples: int, seed: int) -> tuple[QuadraticTask, Array]:
    """Task and initial weights of one seed (drawn outside jit: compiling many random streams at once is slow)."""
    task_key, weight_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), seed))
    task = quadratic_teacher(task_key, samples, config.fresh, config.dimension)
    return task, model.init(weight_key, (-1, config.dimension))[1]


def prepare(config: Config, model: Model, alphas, samples, tasks: QuadraticTask, weights: Array) -> dict[str, Any]:
    """Lanes, starts and data of every run; cells of one seed share its teacher, inputs and weights.

    The network's targets are ``y + f_0``: training ``f`` on them is training the centred ``f - f_0`` on ``y``.
    """
    rows = tasks.data.train.x.shape[1]

    def each(alpha, samples, task: QuadraticTask, weights):
        used = jnp.arange(rows)[:, None] < samples
        data = Data(jax.tree.map(lambda leaf: jnp.where(used, leaf, 0), task.data.train), task.data.test)
        f = scaled(model, alpha).apply
        centred = jax.tree.map(
            lambda b: Batch(b.x, b.y + f(weights, b.x)), data, is_leaf=lambda b: isinstance(b, Batch)
        )
        exact, infinite = theory.moments(weights), theory.infinite_width(config.dimension, weights.dtype)
        lane = partial(Lane, alpha, samples / rows, task.beta)
        return (lane(exact), weights, centred), (lane(infinite), infinite, data), (lane(exact), exact, data)

    def lead(tree):  # [cells, seeds, ...] -> [cells * seeds, ...]
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)

    cells_of_seed = jax.vmap(each, (None, None, 0, 0))
    network, infinite, exact = jax.vmap(cells_of_seed, (0, 0, None, None))(alphas, samples, tasks, weights)
    exact = jax.tree.map(lambda leaf: leaf[:, :1], exact)
    both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), lead(infinite), lead(exact))
    return {"network": lead(network), "theory": both, "lazy": jax.tree.map(lambda leaf: leaf[0], infinite)}


def network_side(config: Config, model: Model) -> Side:
    return Side(
        lambda lane: gradient_descent(
            scaled(model, lane.alpha).apply, mse, config.eta0 / lane.filled * config.width / lane.alpha**2
        ),
        lambda lane, state, x: scaled(model, lane.alpha).apply(state.params, x),
        lambda state: theory.moments(state.params),
    )


def theory_side(config: Config) -> Side:
    return Side(
        lambda lane: theory.reduction(lane.alpha, config.eps, config.eta0 / lane.filled),
        lambda lane, state, x: theory.output(theory.change(state), x, lane.alpha, config.eps)[:, None],
        lambda state: state.moments,
    )


def read(config: Config, side: Side, lane: Lane, state, data: Data):
    """Losses on the batches, the population loss by its three terms, and what the weights have learned."""
    at, (train, fresh) = side.moments(state), data
    k0, k = (theory.kernel(m, train.x, train.x, config.eps) for m in (lane.start, at))
    return {
        "train_loss": mse(side.output(lane, state, train.x), train.y) / lane.filled,
        "sampled_test_loss": mse(side.output(lane, state, fresh.x), fresh.y),
        "kernel_distance": jnp.linalg.norm(k - k0) / jnp.linalg.norm(k0),
        "teacher_share": theory.teacher_share(at, lane.beta),
        "effective_rank": effective_rank(jnp.linalg.eigvalsh(at.second)),
        "weight_norm": jnp.sqrt(config.width * jnp.trace(at.second)),
        **theory.population_loss(at, lane.start, lane.beta, lane.alpha, config.eps),
    }


def read_alignment(config: Config, side: Side, lane: Lane, state, data: Data):
    """Centred alignment of the kernel with the labels on fresh points."""
    x = data.test.x
    k = theory.kernel(side.moments(state), x, x, config.eps)
    y = 0.5 * (x @ lane.beta) ** 2
    return {"alignment": label_alignment(k, y)}


def read_lazy(config: Config, record_at, starts) -> Record:
    """Gradient descent with the initial kernel, whose losses are the same for every alpha: values ``[T, 1, seeds]``."""
    steps = jnp.asarray(record_at, float)

    def losses(lane: Lane, start, data: Data):
        (x, y), eps = data.train, config.eps

        def at_step(at):
            f = theory.output(theory.change(theory.ReductionState(at, start)), x, lane.alpha, eps)
            return {"train_loss": mse(f[:, None], y), **theory.population_loss(at, start, lane.beta, lane.alpha, eps)}

        return jax.vmap(at_step)(theory.lazy_moments(x, y, lane.alpha, eps, config.eta0, steps))

    values = jax.vmap(losses, out_axes=1)(*starts)
    return Record(record_at, record_at, {name: value[:, None] for name, value in values.items()})


class Delay(NamedTuple):
    """Steps ``[alphas, seeds]`` at which train and test loss fall below ``FALL`` of their start; inf if never."""

    train: np.ndarray
    test: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        return time_ratio(self.test, self.train)


def delay(record: Record) -> Delay:
    def fall(name):
        return first_step(record.step, record.values[name], FALL * np.asarray(record.values[name])[0])

    return Delay(fall("train_loss"), fall("test_loss"))
