"""Many runs as one program: a study runs every combination of named settings as lanes and reads on named axes."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from dynamics.evolve.lane import Lane, Lanes, LaneState
from dynamics.evolve.merge import Part, merged
from dynamics.evolve.simulate import simulate
from dynamics.mesh import free_bytes, split_lanes
from dynamics.precision import own_precision
from dynamics.record import RESERVED
from dynamics.types import Array, Dynamics, Observable, PyTree, Record, View

MOST = 256
"""Lanes of one piece, at most: a processor gains nothing from more, and a piece is what an interruption may cost."""
FEW = 64
"""So many lanes run as one piece without an estimate of their memory, which costs a second trace of the program."""


class Drawn(NamedTuple):
    """What ``draw`` may return where parameters and data are not all: ``Drawn(params, data, values)``.

    Attributes:
        params: the start: what the lane's ``dynamics.init`` takes.
        data: the lane's own data; None where ``study`` was given ``data=``.
        values: ``{name: pytree of arrays}``, read as ``lane.name`` by ``make``, ``read`` and ``stop``.
    """

    params: PyTree
    data: Any = None
    values: Mapping[str, Any] = {}


class Piece(NamedTuple):
    """Lanes that run together: one call of ``simulate``.

    Attributes:
        group: what they have in common.
        cells: int ``[n]``, their places in the product of the axes.
        size: lanes of the program: the last of ``cells`` is repeated up to it.
        label: of the piece.
        plan: of which it is a piece.
    """

    group: Group
    cells: np.ndarray
    size: int
    label: str | None
    plan: Plan

    def run(self, simulate: Callable[..., tuple[Any, Record]] = simulate) -> Part:
        """Runs the piece by a time loop: its cells, their time per step, and values ``[T, n, ...]``."""
        with told_to_loop(self.group):
            arguments, dt = self.call()
            return self.part(simulate(**arguments)[1], dt)

    def call(self) -> tuple[dict[str, Any], np.ndarray]:
        """The arguments of ``simulate`` that run it, and the time per step of its cells."""
        group, (state, data) = self.group, self.start()
        rounded = np.asarray(group.lanes.time_steps(state))[: len(self.cells)]
        dt = np.array([float(str(own)) for own in rounded])  # the number that was written, not its float32
        arguments = dict(
            dynamics=group.dynamics, params=None, data=data, train=group.observable, steps=group.steps,
            record_at=group.record_at, key=self.plan.key, stop=group.stop, state=state, label=self.label,
        )  # fmt: skip
        return arguments, dt

    def part(self, record: Record, dt: np.ndarray) -> Part:
        """What the lanes have read, without those that fill the piece up."""
        values = {name: np.asarray(value)[:, : len(self.cells)] for name, value in record.values.items()}
        return self.cells, dt, record._replace(values=values)

    def start(self) -> tuple[LaneState, Any]:
        """The lanes' state, and their data."""
        plan, group = self.plan, self.group
        cells = np.pad(self.cells, (0, self.size - len(self.cells)), "edge")
        used, rows = np.unique(plan.which[cells], return_inverse=True)
        drawn = [plan.draws[place] for place in used]

        def stacked(*leaves: Any) -> Array:
            arrays = [jnp.asarray(leaf) for leaf in leaves]
            forms = [jax.typeof(array) for array in arrays]
            mixed = len({f.dtype for f in forms}) > 1
            if jnp.issubdtype(forms[0].dtype, jax.dtypes.prng_key) or all(f.weak_type for f in forms) or mixed:
                return jnp.stack(arrays)[rows]  # NumPy knows neither keys nor numbers that take another's precision
            held = np.stack([np.asarray(array) for array in arrays])  # no program for each shape
            whole = len(used) == len(rows) and np.all(np.diff(rows) == 1)
            return jnp.asarray(held if whole else held[rows])

        def taken(trees: list[Any]) -> Any:
            return jax.tree.map(stacked, *trees)

        hyper = {name: jnp.asarray([plan.cell(i)[name] for i in cells.tolist()]) for name in group.traced}
        hyper |= taken([dict(one.values) for one in drawn])
        streams = jnp.asarray([plan.number(i) for i in cells.tolist()], jnp.int32)
        with own_precision():
            state = group.lanes.init(hyper, taken([one.params for one in drawn]), streams)
        data = plan.data if plan.data is not None else split_lanes(taken([one.data for one in drawn]))
        return split_lanes(state), data


def study(
    axes: Mapping[str, Iterable[Any]],
    draw: Callable[[Lane], Any],
    make: Callable[[Lane], Dynamics] | None,
    read: Any = (),
    *,
    test: Any = (),
    steps: Any,
    record_at: Any = None,
    key: PRNGKeyArray | None = None,
    data: Any = None,
    stop: Callable[[Lane], Callable[..., Array]] | None = None,
    label: str | None = None,
    loop: Sequence[str] = (),
    stream: Callable[[Mapping[str, int]], int] | None = None,
    memory: float | None = None,
) -> Record:
    """Runs every combination of the values of ``axes`` and reads on named axes.

    Cells of one shape are the lanes of one vmapped program, in pieces of one size that fit the memory, over the local
    devices. A cell's start, data and random stream depend on its own values alone: more cells change none.

    Args:
        axes: ``{name: values}``; a lane has them as ``lane.name``. Numbers are traced within the program. Axes of
            words, axes that change a shape (width, samples) or ``steps``, and those in ``loop`` are looped instead:
            their values are then Python's, and what they give is stacked, or padded with NaN where it differs
            (``Record.lengths`` tells the true lengths).
        draw: ``lane -> (data, params)``, or ``lane -> params`` with ``data=``, or a ``Drawn``: host code, called once
            for each combination of the values that it looks at.
        make: ``lane -> Dynamics``; None where nothing moves and only the draws are read.
        read: ``lane -> observables`` on the training batch, or the observables themselves, as ``simulate`` takes them.
        test: the same, on the test batch, with the prefix ``test_``.
        steps: number of updates, or ``lane -> number``.
        record_at: as ``simulate`` takes it, or ``lane -> steps``.
        key: of all random streams; ``jax.random.key(0)`` unless given.
        data: what all lanes see; ``draw`` then gives the parameters alone.
        stop: ``lane -> ((state, data) -> bool)``: a lane where it holds is frozen, and reads NaN from there on.
        label: the name under which a durable study journals it.
        loop: further axes to loop over, where ``make`` needs their values in Python (a depth).
        stream: ``{axis: index} -> int``, the number of a cell's random stream; by default one of its values. Cells
            of one number share their noise.
        memory: bytes that a piece may take, by an estimate from above; half of the free memory unless given.

    Returns:
        ``Record`` with values ``[T, *axes, ...]`` and ``axes``; ``time`` is ``[T, *axes]`` where the time of a step
        differs.

    Raises:
        ValueError: for an axis without values, of a reserved or twice used name, or a reading named as an axis.
        TypeError: for what ``draw``, ``make`` or ``read`` must not give; where a lane's traced value is needed in
            Python, the message says ``loop``.

    Cost: that of the lanes together; one compilation for each shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dynamics.evolve import gradient_descent, study
        >>> from dynamics.losses import mse
        >>> from dynamics.observe import loss
        >>> from dynamics.types import Batch, Objective
        >>> L, batch = Objective(lambda w, x: x @ w, mse), Batch(jnp.eye(3), jnp.ones((3, 1)))
        >>> record = study(
        ...     {"eta": [0.1, 0.2], "seed": range(4)},
        ...     draw=lambda lane: jax.random.normal(jax.random.key(lane.seed), (3, 1)),
        ...     make=lambda lane: gradient_descent(L, lane.eta),
        ...     read=[loss()], steps=5, data=batch,
        ... )
        >>> record.values["loss"].shape, record.mean("seed").at(eta=0.2).values["loss"].value.shape
        ((2, 2, 4), (2,))
    """
    plan = Plan(**locals())
    return plan.merge([piece.run() for piece in plan.pieces()])


def planned(*arguments: Any, **options: Any) -> Plan:
    """The plan of a study, called as ``study``."""
    bound = inspect.signature(study).bind(*arguments, **options)
    bound.apply_defaults()
    return Plan(**bound.arguments)


class Group(NamedTuple):
    """Cells of one shape, which share one program."""

    lanes: Lanes
    dynamics: Dynamics
    observable: Observable
    stop: Callable[..., Array] | None
    cells: np.ndarray
    traced: tuple[str, ...]
    steps: int
    record_at: Any
    label: str | None


class Plan:
    """A study before it runs: its draws and its groups of one shape."""

    def __init__(self, axes: Mapping[str, Iterable[Any]], draw, make, read, test, steps, record_at, key, data, stop,
                 label, loop, stream, memory) -> None:  # fmt: skip
        self.axes = _checked_axes(axes)
        self.shape = tuple(len(values) for values in self.axes.values())
        self.count, self.memory = math.prod(self.shape), memory
        self.places = dict(zip(self.axes, np.unravel_index(np.arange(self.count), self.shape) if axes else ()))
        self.key = jax.random.key(0) if key is None else key
        self.data, self.stream, self.label = data, stream, label
        with own_precision():
            self.draws, self.which = self._drawn(draw)
        seen: set[str] = set(loop)
        if unknown := sorted(seen - self.axes.keys()):
            raise ValueError(f"loop: got {unknown[0]!r}; allowed: {', '.join(self.axes)}")
        cells = [Lane(self.cell(i), seen) for i in range(self.count)]
        length, at = ([_of(value, lane) for lane in cells] for value in (steps, record_at))
        looped = [name for name in self.axes if name in seen or self._is_words(name) or self._changes_shape(name)]
        self.groups = []
        for fixed in itertools.product(*(range(len(self.axes[name])) for name in looped)):
            chosen = [self.places[name] == index for name, index in zip(looped, fixed)]
            own = np.flatnonzero(np.all(chosen, axis=0)) if looped else np.arange(self.count)
            values = {name: self.axes[name][i] for name, i in zip(looped, fixed)}
            words = " ".join(f"{name}={_shown(value)}" for name, value in values.items())
            named = label if not words else f"{label} {words}" if label else words
            reads = _function("read", read), _function("test", test)
            lanes = Lanes(make or _still, *reads, stop, values, None if data is not None else 0)
            traced = tuple(name for name in self.axes if name not in looped)
            program = lanes.dynamics(), lanes.observable(self.axes), lanes.stopping()
            self.groups.append(Group(lanes, *program, own, traced, length[own[0]], at[own[0]], named))

    def index(self, cell: int) -> dict[str, int]:
        """The place of a cell on each axis."""
        return {name: int(place[cell]) for name, place in self.places.items()}

    def cell(self, cell: int) -> dict[str, Any]:
        """The values of a cell."""
        return {name: self.axes[name][at] for name, at in self.index(cell).items()}

    def _drawn(self, draw) -> tuple[list[Drawn], np.ndarray]:
        """The distinct draws, and which of them each cell has."""
        draws: list[Drawn] = []
        known: dict[frozenset, dict[tuple, int]] = {}
        which = np.zeros(self.count, int)
        for i in range(self.count):
            index = self.index(i)
            for names, found in known.items():
                place = found.get(tuple(index[name] for name in sorted(names)))
                if place is not None:
                    which[i] = place
                    break
            else:
                seen: set[str] = set()
                which[i] = len(draws)
                draws.append(_as_drawn(draw(Lane(self.cell(i), seen)), self.data is not None, self.axes))
                known.setdefault(frozenset(seen), {})[tuple(index[name] for name in sorted(seen))] = which[i]
        return draws, which

    def _is_words(self, name: str) -> bool:
        return not all(isinstance(value, (int, float, np.number)) for value in self.axes[name])

    def _changes_shape(self, name: str) -> bool:
        forms: dict[Any, int] = {}
        of_draw = [forms.setdefault(_form(drawn), len(forms)) for drawn in self.draws]
        found = np.array(of_draw)[self.which].reshape(self.shape)
        axis = list(self.axes).index(name)
        return bool(np.any(found != np.take(found, [0], axis)))

    def number(self, cell: int) -> int:
        """The number of a cell's random stream."""
        if self.stream is not None:
            return self.stream(self.index(cell))
        words = [f"{name}={_shown(value)}" for name, value in sorted(self.cell(cell).items())]
        return zlib.crc32(";".join(words).encode()) & 0x7FFFFFFF

    def pieces(
        self, divide: Callable[[str | None, int], int | None] = lambda label, count: None, least=1, devices=None
    ) -> list[Piece]:
        """The study cut into pieces.

        Args:
            divide: ``(label, lanes) -> lanes of a piece``, or None to have them found.
            least: pieces that there must be, where there are so many lanes.
            devices: over which each is to be divided evenly; the local ones unless given.
        """
        found, devices = [], devices or jax.local_device_count()
        for group in self.groups:
            count = len(group.cells)
            size = divide(group.label, count) or self._size(group, least)
            number = math.ceil(count / size)
            for i in range(number):
                label = group.label if number == 1 else f"{group.label or 'study'} {i + 1} of {number}"
                cells = group.cells[i * size : (i + 1) * size]
                found.append(Piece(group, cells, math.ceil(size / devices) * devices, label, self))
        return found

    def _size(self, group: Group, least: int) -> int:
        """Lanes of a piece, such that it fits the memory."""
        count, most = len(group.cells), MOST
        if self.memory is not None or count > FEW:
            room = free_bytes() / 2 if self.memory is None else self.memory
            few = jax.local_device_count()  # lanes cannot be split over more devices than there are of them
            some = Piece(group, group.cells[:1], few, None, self)
            with told_to_loop(group):
                most = int(max(1, min(MOST, room * few / lane_bytes(group, *some.start(), self.key))))
        return math.ceil(count / min(max(math.ceil(count / most), least), count))

    def merge(self, parts: Sequence[Part]) -> Record:
        """The pieces' readings as one record, on the axes."""
        return merged(parts, self.axes)


def lane_bytes(group: Group, state: LaneState, data: Any, key: Array) -> int:
    """Bytes of lanes from above: their state, and all that a step or a reading computes, as if nothing were freed."""

    def step(state, data):
        return group.dynamics.step(key, state, data)

    def read(state, data):
        zero = jnp.zeros((), jnp.int32)
        view = View(None, None, state=state, step=zero, key=key, data=data, reading=zero)
        return group.observable.update(group.observable.init(view), view)

    kept = (state, data) if group.lanes.data_axis == 0 else state
    own = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    return own + max(_made(jax.make_jaxpr(function)(state, data).jaxpr) for function in (step, read))


def _made(jaxpr: Any) -> int:
    """Bytes of all that a program computes, its inner programs counted once."""
    total = 0
    for equation in jaxpr.eqns:
        total += sum(math.prod(v.aval.shape) * getattr(v.aval.dtype, "itemsize", 8) for v in equation.outvars)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            total += _made(inner) if hasattr(inner, "eqns") else 0
    return total


def _checked_axes(axes: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
    if not isinstance(axes, Mapping):
        raise TypeError(f"axes: got {type(axes).__name__}; allowed: a dictionary {{name: values}}")
    taken = (*RESERVED, *(name for name in dir(Mapping) if not name.startswith("_")))  # lane.keys is no setting
    held = {}
    for name, values in axes.items():
        if name in taken or not str(name).isidentifier():
            raise ValueError(f"axes: got the name {name!r}; allowed: an identifier other than {', '.join(taken)}")
        if isinstance(values, str) or not hasattr(values, "__iter__"):
            raise TypeError(f"axes: got {values!r} for {name!r}; allowed: a sequence of values")
        held[name] = [np.asarray(value)[()] if isinstance(value, jax.Array) else value for value in values]
        if not held[name]:
            raise ValueError(f"axes: got no values for {name!r}; allowed: one or more")
    return held


def _as_drawn(drawn: Any, shared: bool, axes: Mapping[str, Any]) -> Drawn:
    """What ``draw`` gave, as ``Drawn``."""
    if not isinstance(drawn, Drawn):
        if not shared and (type(drawn) is not tuple or len(drawn) != 2):
            got = type(drawn).__name__
            raise TypeError(f"draw: got {got} from it; allowed: (data, params), a Drawn, or params alone with data=")
        drawn = Drawn(drawn) if shared else Drawn(drawn[1], drawn[0])
    if shared and drawn.data is not None:
        raise TypeError("draw: got data from it beside data=; allowed: one of the two")
    if taken := sorted(axes.keys() & drawn.values.keys()):
        raise ValueError(f"draw: got the value {taken[0]!r}, the name of an axis; allowed: any other")
    return drawn


def _form(drawn: Drawn) -> Any:
    leaves, structure = jax.tree.flatten((drawn.params, drawn.data, dict(drawn.values)))
    return structure, tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _still(lane: Lane) -> Dynamics:
    return Dynamics(lambda params: params, lambda key, state, data: state, lambda state: state)


def _function(name: str, read: Any) -> Callable[[Lane], Any]:
    if not callable(read):
        return lambda lane: read
    with contextlib.suppress(ValueError):  # a function that does not tell its arguments
        try:
            inspect.signature(read).bind(None)
        except TypeError:
            got = ", ".join(inspect.signature(read).parameters)
            raise TypeError(f"{name}: got a function of ({got}); allowed: lane -> observables, or a list") from None
    return read


def _of(value: Any, lane: Lane) -> Any:
    return value(lane) if callable(value) else value


def _shown(value: Any) -> str:
    return f"{float(value):.12g}" if isinstance(value, (int, float, np.number)) else str(value)


@contextlib.contextmanager
def told_to_loop(group: Group) -> Iterator[None]:
    """An error of JAX for a traced value that Python needs says which axes may be looped instead."""
    try:
        yield
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    ) as error:
        if not group.traced:
            raise
        names = ", ".join(group.traced)
        raise TypeError(
            f"study: got make or read needing in Python one of the traced values of {names}; allowed: loop=(name,) for "
            f"an axis whose values must be Python's ({str(error).splitlines()[0]})"
        ) from error
