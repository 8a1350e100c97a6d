"""A network run again from its program, with a zero tap at every site and the sites' data on the side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from dynamics.program import jaxpr
from dynamics.program.meetings import Site, looped, meetings
from dynamics.program.views import View, looked_through, reshaped, whole_leaf
from dynamics.types import Array


class Survey(NamedTuple):
    """What a program does with its parameters.

    Attributes:
        sites: in the order in which the program meets them.
        direct: leaves with a use that is no site; their derivative is taken by plain reverse mode.
    """

    sites: tuple[Site, ...]
    direct: frozenset[int]


def survey(program: ClosedJaxpr, num_leaves: int, *, direct: frozenset[int] = frozenset()) -> Survey:
    """Finds the sites of ``program``, whose first ``num_leaves`` arguments are the parameter leaves.

    Args:
        program: for one sample.
        num_leaves: number of parameter leaves.
        direct: leaves not to look at.
    """
    while True:
        found = _Recorder(direct, None)
        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in program.in_avals]
        jax.eval_shape(lambda *args, found=found: _start(program, num_leaves, args, found), *shapes)
        if not found.direct - direct:
            return Survey(tuple(found.sites), direct)
        direct = direct | found.direct


def replay(
    program: ClosedJaxpr, num_leaves: int, known: Survey, args: Sequence[Any], taps: Sequence[Array]
) -> tuple[list[Any], list[Array]]:
    """Runs ``program`` with ``taps`` added at the sites: ``(outputs, data of each site)``."""
    recorder = _Recorder(known.direct, list(taps))
    outputs = _start(program, num_leaves, args, recorder)
    return outputs, recorder.data


class _Recorder:
    """Meets sites in order. Without taps it lists them and the leaves that must be direct; with taps it adds them."""

    def __init__(self, direct: frozenset[int], taps: list[Array] | None):
        self.direct, self.taps = set(direct), taps
        self.sites: list[Site] = []
        self.data: list[Array] = []

    def add(self, site: Site, data: Array) -> None:
        self.sites.append(site)
        self.data.append(data)

    def next_tap(self, site: Site) -> Array:
        return jnp.zeros(site.tap.shape, site.tap.dtype) if self.taps is None else self.taps[len(self.sites)]

    def spoil(self, values: Sequence[Any]) -> list[Any]:
        """Gives the views up: their leaves become direct."""
        self.direct |= {value.leaf for value in values if isinstance(value, View)}
        return [_plain(value) for value in values]


def _start(program: ClosedJaxpr, num_leaves: int, args: Sequence[Any], recorder: _Recorder) -> list[Any]:
    tagged = [
        whole_leaf(arg, leaf) if leaf < num_leaves and leaf not in recorder.direct else arg
        for leaf, arg in enumerate(args)
    ]
    return recorder.spoil(_interpret(program, tagged, recorder))


def _interpret(program: ClosedJaxpr, args: Sequence[Any], recorder: _Recorder) -> list[Any]:
    env = dict(zip(program.jaxpr.constvars, program.consts)) | dict(zip(program.jaxpr.invars, args))

    def read(atom):
        return atom.val if isinstance(atom, Literal) else env[atom]

    for equation in program.jaxpr.eqns:
        results = _step(equation, [read(atom) for atom in equation.invars], recorder)
        env.update(zip(equation.outvars, results))
    return [read(atom) for atom in program.jaxpr.outvars]


def _step(equation: JaxprEqn, values: list[Any], recorder: _Recorder) -> list[Any]:
    if not any(isinstance(value, View) for value in values):
        return jaxpr.run(equation, values)
    body = jaxpr.called(equation)
    if body is not None:
        return _interpret(body, values, recorder)
    body = jaxpr.rematerialised(equation)
    if body is not None:
        return _checkpointed(equation, body, values, recorder)
    if equation.primitive.name == "scan":
        return _loop(equation, values, recorder)
    results = jaxpr.run(equation, [_plain(value) for value in values])
    found = meetings(equation, values, results[0]) if len(results) == 1 else None
    if found is not None:
        return [_tapped(results[0], found, recorder)]
    view = looked_through(equation, values, results[0]) if sum(isinstance(v, View) for v in values) == 1 else None
    if view is not None:
        return [view]
    recorder.spoil(values)
    return results


def _tapped(result: Array, found: list[Any], recorder: _Recorder) -> Array:
    for site, data, scale in found:
        tap = recorder.next_tap(site)
        recorder.add(site, data)
        result = result + (tap if isinstance(scale, float) and scale == 1 else jnp.asarray(scale, tap.dtype) * tap)
    return result


def _checkpointed(equation: JaxprEqn, body: ClosedJaxpr, values: list[Any], recorder: _Recorder) -> list[Any]:
    """A ``jax.checkpoint`` whose body holds sites stays one: taps go in, data come out."""
    inner = _look_inside(body, values, recorder)

    def run(taps, arrays):
        within = _Recorder(frozenset(recorder.direct), taps)
        return within.spoil(_interpret(body, _tagged_as(values, arrays, within), within)), within.data

    taps = _take(inner, recorder)
    params = equation.params
    again = jax.checkpoint(run, prevent_cse=params["prevent_cse"], policy=params["policy"])
    results, data = again(taps, [_plain(value) for value in values])
    for site, seen in zip(inner, data, strict=True):
        recorder.add(site, seen)
    return results


def _loop(equation: JaxprEqn, values: list[Any], recorder: _Recorder) -> list[Any]:
    """A ``scan`` whose body holds sites: stacked taps go in beside its inputs, stacked data come out."""
    params = equation.params
    body, length = jaxpr.closed(params["jaxpr"]), params["length"]
    consts, carried = jaxpr.scan_counts(params)
    values[consts : consts + carried] = recorder.spoil(values[consts : consts + carried])
    sliced = [_sliced(value) for value in values[consts + carried :]]
    entering = [*values[: consts + carried], *sliced]
    rounds = {value.leaf for value in sliced if isinstance(value, View)}
    recorder.direct |= rounds & {value.leaf for value in values[:consts] if isinstance(value, View)}
    inner = _look_inside(body, entering, recorder)
    outer = [looped(site, length, sliced=site.leaf in rounds) for site in inner]

    def run(carry, per_round):
        taps, arrays = per_round
        arrays = [*(_plain(value) for value in values[:consts]), *carry, *arrays]
        within = _Recorder(frozenset(recorder.direct), taps)
        results = within.spoil(_interpret(body, _tagged_as(entering, arrays, within), within))
        return results[:carried], (results[carried:], within.data)

    taps = _take([site for site, _ in outer], recorder)
    inputs = [_plain(value) for value in values[consts + carried :]]
    carry, (stacked, data) = jax.lax.scan(
        run,
        values[consts : consts + carried],
        (taps, inputs),
        length=length,
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    for (site, merge), seen in zip(outer, data, strict=True):
        recorder.add(site, merge(seen))
    return [*carry, *stacked]


def _sliced(value: Any) -> Any:
    """A loop input as one round sees it."""
    if not isinstance(value, View):
        return jax.eval_shape(lambda array: array[0], value)
    view = reshaped(value, value.value) if value.order != tuple(range(len(value.order))) else value
    one = jax.eval_shape(lambda array: array[0], view.value)
    return view._replace(value=one, base=(*view.base, ("scan",)), order=tuple(range(one.ndim)))


def _look_inside(body: ClosedJaxpr, values: Sequence[Any], recorder: _Recorder) -> list[Site]:
    """The sites of an inner program; leaves with other uses in it become direct."""
    while True:
        within = _Recorder(frozenset(recorder.direct), None)

        def run(*arrays, within=within):
            return within.spoil(_interpret(body, _tagged_as(values, arrays, within), within))

        jax.eval_shape(run, *[jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in body.in_avals])
        if not within.direct - recorder.direct:
            return within.sites
        recorder.direct |= within.direct


def _tagged_as(values: Sequence[Any], arrays: Sequence[Any], recorder: _Recorder) -> list[Any]:
    """``arrays`` as the views that ``values`` are, save for direct leaves."""
    return [
        value._replace(value=array) if isinstance(value, View) and value.leaf not in recorder.direct else array
        for value, array in zip(values, arrays, strict=True)
    ]


def _take(sites: Sequence[Site], recorder: _Recorder) -> list[Array]:
    """The taps of the next sites."""
    if recorder.taps is None:
        return [jnp.zeros(site.tap.shape, site.tap.dtype) for site in sites]
    start = len(recorder.sites)
    return recorder.taps[start : start + len(sites)]


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, View) else value
