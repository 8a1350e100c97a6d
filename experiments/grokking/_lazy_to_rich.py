"""The lazy-to-rich network and its theories on the same data, over output scale, eps, sample count and seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynamics.evolve import Drawn, gradient_descent, log_steps
from dynamics.losses import mse
from dynamics.models.scaling import scaled
from dynamics.models.two_layer import committee, quadratic
from dynamics.observe import seldom
from dynamics.statistics import effective_rank, first_step, kernel_distance, label_alignment, time_ratio
from dynamics.tasks.teachers import quadratic_teacher
from dynamics.theory import lazy_to_rich as theory
from dynamics.types import Batch, Dynamics, Model, Objective, Observable, Params, Record, View

Axes = Mapping[str, Sequence[Any]]
ALIGNMENT_EVERY = 8  # recorded steps between readings of the kernel on fresh points
ALIGNMENT_POINTS = 1000  # fresh points of those readings, at most
TERMS = {"mean": "mean output", "linear": "linear part", "power": "quadratic form"}  # of the test loss, as they fall
FALL = 0.1  # a loss has fallen when it is below this share of its value at step 0


def network_and_theories(config: Any, study, axes: Axes, steps: int, suffix: str = "", **options):
    """``network``, ``infinite width`` and, for the first seed, ``exact reduction``; arguments as in ``trained``."""
    first = {**axes, "seed": axes["seed"][:1]}
    runs = {"network": axes, "infinite width": axes, "exact reduction": first}
    return {name + suffix: trained(config, study, name, axes, steps, suffix, **options) for name, axes in runs.items()}


def trained(config: Any, study, name: str, axes: Axes, steps: int, suffix: str = "", kernel: bool = False) -> Record:
    """The network, or the theory that ``name`` says.

    Args:
        config: gives what is no axis, alpha at its smallest.
        study: the pure or the durable one.
        name: ``network``, ``infinite width`` or ``exact reduction``.
        axes: ``seed``, and any of ``eps``, ``alpha`` and ``samples``.
        steps: number of updates.
        suffix: of the label.
        kernel: read the kernel on fresh points too.
    """

    def observables(lane):
        fresh = (alignment(config, lane),) if kernel else ()
        return Observable.of_view(partial(read, config, lane)), *fresh

    return study(
        axes,
        draw=partial(draw, config, name),
        make=partial(dynamics, config, name),
        read=observables,
        steps=steps,
        record_at=log_steps(steps),
        key=jax.random.key(config.seed),
        label=name + suffix,
    )


def scales(config: Any, lane) -> tuple[Any, Any]:
    """``(alpha, eps)`` of a lane."""
    return lane.get("alpha", min(config.alpha)), lane.get("eps", config.eps)


def network(config: Any, lane) -> Model:
    alpha, eps = scales(config, lane)
    return scaled(committee(config.width, quadratic(eps)), alpha)


def draw(config: Any, name: str, lane) -> Drawn:
    """Cells of one seed share its teacher, inputs and weights; more samples are further ones.

    The network's targets are ``y + f_0``: training ``f`` on them is training the centred ``f - f_0`` on ``y``.
    """
    task_key, weight_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), lane.seed))
    samples = lane.get("samples", config.samples)
    data, beta = quadratic_teacher(task_key, samples, config.fresh, config.dimension)
    weights = jax.random.normal(weight_key, (config.width, config.dimension))
    start = theory.moments(weights)
    if name == "network":
        f = network(config, lane).apply
        data = type(data)(*(Batch(x, y + f(weights, x)) for x, y in data))
    elif name == "infinite width":
        start = theory.infinite_width(config.dimension, weights.dtype)
    return Drawn(weights if name == "network" else start, data, {"beta": beta, "start": start})


def dynamics(config: Any, name: str, lane) -> Dynamics:
    """Descent on the network's weights or, exactly, on its order parameters, with f as their objective's."""
    alpha, eps = scales(config, lane)
    if name == "network":
        L = Objective(network(config, lane).apply, mse)
        return gradient_descent(L, config.eta0 * config.width / alpha**2)

    def f(at, x):
        return theory.output(theory.change(theory.ReductionState(at, lane.start)), x, alpha, eps)[:, None]

    return theory.reduction(alpha, eps, config.eta0)._replace(objective=Objective(f, mse))


def moments(params: Params) -> theory.Moments:
    return params if isinstance(params, theory.Moments) else theory.moments(params)


def read(config: Any, lane, view: View):
    """Losses on the batches, the population loss by its three terms, and what the weights have learned.

    ``feature_distance`` is ``kernel_distance`` of the part ``x.x' x^T M x'`` alone, which learns the task and carries
    ``eps^2`` in the kernel.
    """
    (alpha, eps), at = scales(config, lane), moments(view.params)
    L, (train, fresh) = view.loss("lazy_to_rich"), view.data
    k0, k = (theory.kernel(m, train.x, train.x, eps) for m in (lane.start, at))
    q0, q = ((train.x @ train.x.T) * (train.x @ m.second @ train.x.T) for m in (lane.start, at))
    return {
        "train_loss": L(view.params, train),
        "sampled_test_loss": one_by_one(L, view.params, fresh),
        "kernel_distance": kernel_distance(k, k0),
        "feature_distance": kernel_distance(q, q0),
        "teacher_share": theory.teacher_share(at, lane.beta),
        "effective_rank": effective_rank(jnp.linalg.eigvalsh(at.second)),
        "weight_norm": jnp.sqrt(config.width * jnp.trace(at.second)),
        **theory.population_loss(at, lane.start, lane.beta, alpha, eps),
    }


def one_by_one(fn: Callable[..., jax.Array], *args: Any) -> jax.Array:
    """``fn(*args)``, of one lane after another: on thousands of points what all lanes hold is far beyond the caches."""
    converted, held = jax.closure_convert(lambda *args: fn(*args), *args)  # not fn, which may not be weakly referenced
    return jax.custom_batching.sequential_vmap(converted)(*args, *held)


def alignment(config: Any, lane) -> Observable:
    """Centred alignment of the kernel with the labels on fresh points."""

    def aligned(at, x):
        k = theory.kernel(at, x, x, scales(config, lane)[1])
        return label_alignment(k, 0.5 * (x @ lane.beta) ** 2)

    def of(view: View):
        return {"alignment": one_by_one(aligned, moments(view.params), view.data.test.x[:ALIGNMENT_POINTS])}

    return seldom(Observable.of_view(of), ALIGNMENT_EVERY)


def lazy(config: Any, study, axes: Axes) -> Record:
    """Gradient descent with the initial kernel, whose losses are the same for every alpha: values ``[T, *axes]``."""

    def losses(lane, view: View, at):
        (alpha, eps), (x, y), start = scales(config, lane), view.data.train, lane.start
        f = theory.output(theory.change(theory.ReductionState(at, start)), x, alpha, eps)
        return {"train_loss": mse(f[:, None], y), **theory.population_loss(at, start, lane.beta, alpha, eps)}

    start = partial(draw, config, "infinite width")
    return frozen(config, study, axes, start, losses, log_steps(config.steps), "lazy", partial(scales, config))


def frozen(config: Any, study, axes: Axes, draw, losses, record_at, label: str, scales) -> Record:
    """Descent with the kernel of the start, in closed form at the steps ``record_at [T]``: values ``[T, *axes]``.

    Args:
        config, study, axes: as in ``trained``.
        draw: ``lane -> Drawn``.
        losses: ``(lane, view, moments) -> readings``.
        record_at: the steps.
        label: of the study.
        scales: ``lane -> (alpha, eps)``.
    """

    def read(lane, view: View):
        (alpha, eps), (x, y) = scales(lane), view.data.train
        moments = theory.lazy_moments(x, y, alpha, eps, config.eta0, jnp.asarray(record_at, float))
        return jax.vmap(partial(losses, lane, view))(moments)

    record = study(
        axes, draw=draw, make=None, read=lambda lane: Observable.of_view(partial(read, lane)), steps=0, label=label
    )
    values = {name: np.moveaxis(value[0], -1, 0) for name, value in record.values.items()}
    return Record(record_at, record_at, values, record.axes)


class Delay(NamedTuple):
    """Steps ``[*axes]`` at which train and test loss fall below ``FALL`` of their start; inf if never."""

    train: np.ndarray
    test: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        return time_ratio(self.test, self.train)

    def at(self, *place: Any) -> Delay:
        return Delay(*(steps[place] for steps in self))

    def least(self, record: Record) -> np.ndarray:
        """What the ratio is at least: with the run's last step in the place of a test time that was not reached."""
        return np.minimum(self.test, record.step[-1]) / self.train


def delay(record: Record) -> Delay:
    def fall(name):
        return first_step(record.step, record.values[name], FALL * np.asarray(record.values[name])[0])

    return Delay(fall("train_loss"), fall("test_loss"))


class Plateau(NamedTuple):
    """What the network has reached at its largest test loss, by seed ``[seeds]``; losses in units of their start.

    ``deviation``: largest distance of the train loss from that of the frozen kernel until then; ``features``: movement
    of the part of the kernel that learns, as a share of its movement in the whole run.
    """

    test: np.ndarray
    frozen_test: np.ndarray
    train: np.ndarray
    deviation: np.ndarray
    features: np.ndarray
    sampled: np.ndarray
    terms: dict[str, np.ndarray]


def plateau(record: Record, frozen: Record) -> Plateau:
    """Of ``[T, seeds]``, beside the frozen kernel's losses."""
    values, lazily = record.values, {name: at_steps(frozen, name, record.step) for name in ("train_loss", "test_loss")}
    test, train = (values[name] / values[name][0] for name in ("test_loss", "train_loss"))
    peak = np.argmax(test, axis=0)[None]
    before = np.arange(len(test))[:, None] <= peak

    def at_peak(curve):
        return np.take_along_axis(np.asarray(curve), peak, axis=0)[0]

    deviation = np.max(np.abs(train - lazily["train_loss"] / lazily["train_loss"][0]) * before, axis=0)
    features = at_peak(values["feature_distance"]) / values["feature_distance"][-1]
    terms = {name: at_peak(values[f"test_{name}"] / values["test_loss"]) for name in TERMS}
    sampled = at_peak(values["sampled_test_loss"] / values["test_loss"])
    rise = np.max(lazily["test_loss"] / lazily["test_loss"][0], axis=0)
    return Plateau(at_peak(test), rise, at_peak(train), deviation, features, sampled, terms)


def at_steps(record: Record, name: str, steps) -> np.ndarray:
    """A reading ``[T, ...]`` at other steps, interpolated."""
    values = np.asarray(record.values[name])
    columns = [np.interp(steps, record.step, column) for column in values.reshape(len(values), -1).T]
    return np.stack(columns, axis=-1).reshape(-1, *values.shape[1:])


def exponent(x, times) -> np.ndarray:
    """Slope of log times ``[n, lanes]`` on ``log x``, by lane; NaN for one that never comes."""
    x = np.log(x) - np.mean(np.log(x))
    return x @ np.where(np.isfinite(times), np.log(times), np.nan) / (x @ x)


def last(record: Record, name: str) -> np.ndarray:
    """The last reading over the first, ``[*axes]``."""
    return np.asarray(record.values[name])[-1] / record.values[name][0]


def after_largest(curve) -> tuple[np.ndarray, np.ndarray]:
    """Curves ``[T, ...]``, infinite until they are largest, and the level of their fall."""
    curve = np.asarray(curve, float)
    rising = np.arange(len(curve)).reshape(-1, *(1,) * (curve.ndim - 1)) < np.argmax(curve, axis=0)
    return np.where(rising, np.inf, curve), FALL * np.max(curve, axis=0)
