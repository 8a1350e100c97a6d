"""Core types: what flows between models, dynamics, observables, theory and reports. No algorithms."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from dynamics.claims import Claim
from dynamics.precision import full_precision
from dynamics.record import Estimate, Record

Array = jax.Array
ArrayLike = jax.typing.ArrayLike
PyTree = Any
Params = Any
Readings = Mapping[str, Array]

__all__ = [
    "Array",
    "ArrayLike",
    "Batch",
    "Claim",
    "Data",
    "Dynamics",
    "Estimate",
    "Model",
    "Objective",
    "Observable",
    "Params",
    "PyTree",
    "Readings",
    "Record",
    "StatefulModel",
    "Stream",
    "View",
    "check_apply",
    "check_objective",
    "factory",
    "gone",
    "scalar",
]


def gone(module: str, *, now: Any = None, **lines: str) -> Callable[[str], Any]:
    """A module's ``__getattr__``: what 0.1 had there is answered with the line to write instead.

    ``now`` is the module that took its names over; ``lines`` gives the line of every other name.
    """

    def missing(name: str) -> Any:
        if now is not None and name in now.__all__:
            lines[name] = f"{now.__name__}.{name}"
        if name in lines:
            raise ImportError(f"{module}.{name} is gone since 0.2; write {lines[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return missing


class Model(NamedTuple):
    """A network as pure functions; unpacks as ``init_fn, apply_fn, kernel_fn``.

    Attributes:
        init: ``(key, input_shape) -> (output_shape, params)``; ``input_shape`` and ``output_shape`` include the
            sample axis, which may be -1.
        apply: ``(params, x) -> f`` with ``x [n, ...]`` and ``f [n, c]``, pure.
        kernel: ``(x1, x2=None, get=None) -> Kernel`` of the infinite-width limit, or None where there is none.
    """

    init: Callable[..., tuple[tuple[int, ...], Params]]
    apply: Callable[..., Array]
    kernel: Callable[..., Any] | None = None


class StatefulModel(NamedTuple):
    """A network whose layers carry state (batch statistics) or draw random numbers (dropout) while training.

    Attributes:
        init: ``(key, input_shape) -> (output_shape, (params, model_state))``.
        apply: ``(params, model_state, x, key) -> (f, model_state)``, the training-mode forward pass.
        evaluate: ``(params, model_state, x) -> f``, the deterministic forward pass.
    """

    init: Callable[..., tuple[tuple[int, ...], tuple[Params, PyTree]]]
    apply: Callable[..., tuple[Array, PyTree]]
    evaluate: Callable[..., Array]


class Batch(NamedTuple):
    """Inputs ``x [n, ...]`` and targets ``y [n, c]``."""

    x: Any
    y: Any


class Data(NamedTuple):
    """What a run sees: ``train`` moves the parameters, ``test`` (a ``Batch``, or None) is only read."""

    train: Batch
    test: Any = None


class Objective(NamedTuple):
    """The landscape, ``L(params, batch) = loss(f, y) + penalty(params)``, said once: training, curvature, kernels and
    noise all read the same one.

    With a ``StatefulModel`` as ``apply``, L is the loss of the deterministic forward pass at a frozen state (batch
    statistics, no dropout): ``L.at(model_state)``. Training moves by the training-mode pass; curvature, kernels and
    losses that are read along a run are those of L at the state of that moment.

    Attributes:
        apply: ``(params, x) -> f``, or a ``StatefulModel``; None where there is no f (``Objective.of``).
        loss: ``(f [n, c], y [n, c]) -> scalar``; without ``apply``, ``(params, batch) -> scalar``.
        penalty: ``params -> scalar``, part of the loss and its Hessian, not of the NTK and the Gauss-Newton matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> L = Objective(lambda w, x: x @ w, lambda f, y: jnp.mean((f - y) ** 2))
        >>> float(L(jnp.ones((2, 1)), Batch(jnp.ones((3, 2)), jnp.zeros((3, 1)))))
        4.0
    """

    apply: Any
    loss: Callable[..., Array]
    penalty: Callable[[Params], Array] | None = None

    @classmethod
    def of(cls, loss: Callable[[Params, Any], Array], penalty: Callable[[Params], Array] | None = None) -> Objective:
        """Any scalar ``(params, batch) -> loss``, over any batch pytree: masked, per token, contrastive, physics."""
        return cls(None, loss, penalty)

    def __call__(self, params: Params, batch: Any) -> Array:
        """``L(params, batch)``, a scalar.

        Raises:
            TypeError: when the loss is none, the batch has no ``x`` and ``y`` that f needs, or the model's state is
                not said (``at``).
        """
        if self.apply is None:
            return self.penalised(params, scalar(self.loss(params, batch)))
        f = self.f("L")
        if not hasattr(batch, "x"):
            got = "an array" if isinstance(batch, jax.Array) else type(batch).__name__
            raise TypeError(f"batch: got {got}; allowed: Batch(x, y), or Objective.of(fn) for any other batch")
        return self.penalised(params, scalar(self.loss(f(params, batch.x), batch.y)))

    def penalised(self, params: Params, value: Float[Array, ""]) -> Float[Array, ""]:
        """``value`` and the penalty."""
        return value if self.penalty is None else value + self.penalty(params)

    def f(self, reader: str) -> Callable[..., Array]:
        """The network ``(params, x) -> f``, for ``reader``, which needs it.

        Raises:
            TypeError: where there is none.
        """
        if self.apply is None:
            raise TypeError(
                f"objective: got Objective.of(...), which has no f; allowed for {reader}: Objective(apply, loss)"
            )
        if isinstance(self.apply, StatefulModel):
            raise TypeError(
                f"objective: got a StatefulModel's; allowed for {reader}: L.at(model_state), its statistics frozen"
            )
        check_apply(self.apply)
        return self.apply

    def at(self, model_state: PyTree) -> Objective:
        """The objective of a ``StatefulModel`` at a frozen state; any other is itself."""
        model = self.apply
        if not isinstance(model, StatefulModel):
            return self
        return self._replace(apply=lambda params, x: model.evaluate(params, model_state, x))


class Dynamics(NamedTuple):
    """A way to move parameters (or order parameters).

    Attributes:
        init: ``params -> state``.
        step: ``(key, state, data) -> state``, one update, pure.
        params: ``state -> params``.
        dt: time per step: the learning rate for plain descent, so that ``time = dt * step``.
        objective: what it descends on; None for order-parameter equations.
        objective_at: ``state -> Objective`` where that depends on the state (batch statistics, a linearisation's
            anchor); None elsewhere.
        preconditioner: ``state -> P``, a pytree like the parameters: the optimiser moves by ``P^-1`` times its
            (averaged) gradient. None where that is not known.
        order: p, where its path at a fixed time ``dt * step`` tends to a flow as ``O(dt^p)``; None where there is no
            such flow (minibatches, a schedule; moments that forget by the step) or ``dt`` is not the step's size.
        optimizer: the optax transformation that moves the parameters, None elsewhere.
    """

    init: Callable[[Params], PyTree]
    step: Callable[[Array, PyTree, Any], PyTree]
    params: Callable[[PyTree], Params]
    dt: Any = 1.0
    objective: Objective | None = None
    objective_at: Callable[[PyTree], Objective] | None = None
    preconditioner: Callable[[PyTree], PyTree] | None = None
    order: int | None = None
    optimizer: Any = None


class Stream(NamedTuple):
    """Tasks that change while one trains; ``evolve.over_tasks`` trains on them.

    Attributes:
        data: ``task -> data``, pure, of an int32 scalar counted from 0: a ``Batch`` or ``Data``, or whatever the
            objective takes, of one shape for all tasks.
        steps: None where a task is trained on as a whole; of an online stream the updates a task, and every leaf of its
            data leads with that axis, ``[steps, n, ...]``: step i of a task sees slice i.
    """

    data: Callable[[Any], Any]
    steps: int | None = None


class View(NamedTuple):
    """What an observable may look at; in a run, at one recorded step.

    Attributes:
        params: the parameters.
        batch: ``Batch(x, y)`` that is read, or whatever the objective takes.
        objective: L; None for order-parameter equations.
        state: the dynamics' state.
        dynamics: what moves it.
        step: int32, updates done.
        key: of this reading: its own at each step.
        data: all that the run sees, train and test.
        reading: int32, readings taken before this one.
    """

    params: Params
    batch: Any
    objective: Objective | None = None
    state: PyTree = None
    dynamics: Dynamics | None = None
    step: Any = None
    key: Any = None
    data: Any = None
    reading: Any = None

    def loss(self, reader: str) -> Objective:
        """The objective, for ``reader``, which needs it.

        Raises:
            TypeError: where there is none.
        """
        if self.objective is None:
            raise TypeError(f"objective: got none; allowed for {reader}: a dynamics or a View with an Objective")
        return self.objective

    def f(self, reader: str) -> Callable[..., Array]:
        """The network ``(params, x) -> f``, for ``reader``; raises TypeError where there is none."""
        return self.loss(reader).f(reader)


class Observable(NamedTuple):
    """Something that reads, made by ``factory(**options)``; the only shape of it.

    Attributes:
        init: ``view -> memory``, a pytree (``()`` for none), at the first reading.
        update: ``(memory, view) -> (memory, {name: array})``, pure, jit- and vmap-able.
    """

    init: Callable[[View], PyTree]
    update: Callable[[PyTree, View], tuple[PyTree, Readings]]

    @classmethod
    def of(cls, read: Any) -> Observable:
        """``read`` itself, or a plain function ``(params, batch) -> {name: array}`` as an observable.

        Raises:
            TypeError: for anything else, and for a factory that was not called.
        """
        if isinstance(read, cls):
            return read
        if getattr(read, "makes_observable", False):
            raise TypeError(
                f"observable: got the factory {read.__name__}; allowed: what it makes, observe.{read.__name__}(...)"
            )
        if not callable(read):
            raise TypeError(
                f"observable: got {type(read).__name__}; allowed: an Observable, made by a factory such as "
                "observe.sharpness(), or a function (params, batch) -> {name: array}"
            )
        plain: Any = read
        return cls.of_view(lambda view: plain(view.params, view.batch))

    @classmethod
    def of_view(cls, read: Callable[[View], Readings]) -> Observable:
        """A function ``view -> {name: array}`` as an observable without memory."""
        return cls(lambda view: (), lambda memory, view: (memory, read(view)))


def factory(line: str, *, needs_f: bool = False) -> Callable[[Callable], Callable]:
    """Marks a function that is called with options or an ``Objective``, so that a call of 0.1 gets one sentence.

    In 0.1 model and loss were handed to every observable, operator and dynamics; now an ``Objective`` is, once.

    Args:
        line: what to write instead.
        needs_f: whether what it makes reads f, which an ``Objective.of`` has not; the tests hold it to that.

    Returns:
        A decorator. The function then raises TypeError, showing ``line``, when it gets a function, a model or a module
        where it takes none; ``makes_observable`` marks it for ``Observable.of``.
    """

    def mark(function: Callable) -> Callable:
        signature = inspect.signature(function)
        first = next((one for one in signature.parameters.values() if one.kind <= one.POSITIONAL_OR_KEYWORD), None)
        takes_function = first is not None and str(first.annotation).startswith(("Callable", "OperatorOf"))

        @functools.wraps(function)
        def made(*args, **kwargs):
            old = [
                isinstance(arg, Model | StatefulModel) or (callable(arg) and not isinstance(arg, Objective))
                for arg in args
            ]
            if any(old[:1]) and (not takes_function or any(old[1:2])):
                got = type(args[0]).__name__
                raise TypeError(
                    f"{function.__name__}: got a {got} where 0.1 took apply and loss; allowed: {line}, with "
                    "L = Objective(apply, loss) said once, where the dynamics is made"
                )
            return function(*args, **kwargs)

        returns = str(signature.return_annotation)
        made = full_precision(made) if returns in ("Observable", "Operator") else made
        made.needs_f = needs_f  # type: ignore[attr-defined]
        made.makes_observable = returns == "Observable"  # type: ignore[attr-defined]
        return made

    return mark


_BRIDGES = (
    ("flax.linen", "Module", "from_flax"),
    ("flax.nnx", "Module", "from_flax"),
    ("equinox", "Module", "from_equinox"),
)


def check_apply(apply: Any) -> None:
    """Raises TypeError, saying what to pass instead, when ``apply`` is a model or a module rather than its function."""
    if isinstance(apply, Model):
        raise TypeError("apply: got a Model; allowed: its function, model.apply")
    if isinstance(apply, StatefulModel):
        raise TypeError("apply: got a StatefulModel; allowed: models.frozen(model, state.model_state).apply")
    for package, name, bridge in _BRIDGES:
        module = getattr(sys.modules.get(package), name, None)
        wraps = hasattr(apply, "__wrapped__") or hasattr(apply, "_fun")  # equinox wraps functions in modules
        if module is not None and isinstance(apply, module) and not wraps:
            raise TypeError(
                f"apply: got the module {type(apply).__name__}; allowed: model.apply of the Model that "
                f"dynamics.models.{bridge} makes of it"
            )
    if not callable(apply):
        raise TypeError(f"apply: got {type(apply).__name__}; allowed: a function (params, x) -> f")


def scalar(loss: Shaped[Array, ...]) -> Shaped[Array, ""]:
    """``loss`` itself; raises TypeError when it is no real scalar."""
    if jnp.iscomplexobj(loss):
        raise TypeError(
            f"loss: got {jnp.result_type(loss)}; allowed: a real scalar, e.g. the mean of jnp.abs(f - y)**2"
        )
    if jnp.shape(loss):
        raise TypeError(f"loss: got shape {jnp.shape(loss)}; allowed: a scalar; take the mean over samples")
    return loss


def check_objective(objective: Any) -> None:
    """Raises TypeError, saying what to pass instead, unless ``objective`` is an ``Objective`` of functions."""
    if not isinstance(objective, Objective):
        raise TypeError(
            f"objective: got {type(objective).__name__}; allowed: Objective(apply, loss), or Objective.of(fn) for any "
            "(params, batch) -> scalar"
        )
    if objective.apply is not None and not isinstance(objective.apply, StatefulModel):
        check_apply(objective.apply)
    for name in ("loss", "penalty"):
        function = getattr(objective, name)
        if not callable(function) and not (name == "penalty" and function is None):
            raise TypeError(
                f"{name}: got {function!r}; allowed: a function, e.g. dynamics.losses.half_mse for a loss (f, y) -> "
                "scalar"
            )


if not TYPE_CHECKING:
    __getattr__ = gone(
        __name__,
        Readout="the observables themselves: simulate(..., train=[loss(), ...])",
        StatefulObservable="Observable(init, update), with init(view) and update(memory, view)",
    )
