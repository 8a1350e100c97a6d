"""Where weights meet activations in any network's program: each such place, with what goes in and what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Float

from dynamics.program import jaxpr
from dynamics.types import Array, Params

AFFINE = {"mul", "div", "add", "sub", "neg", "reshape", "transpose", "convert_element_type", "squeeze", "expand_dims"}
AFFINE |= {"broadcast_in_dim", "copy", "add_any", "copy_p"}


class Layer(NamedTuple):
    """A place where a weight meets an activation, in a run of the program.

    Attributes:
        leaves: numbers of the parameter leaves in the weight.
        fan_in, fan_out: numbers that an output sums over (1 for a lookup), and of outputs.
        sources: numbers of the layers whose outputs reach this one's input through no other layer.
        weight, data: the operands; ``data`` None for a lookup.
        output: the result, with the scale and bias that follow it.
        scale: by how much what follows multiplies the result, in root mean square.
    """

    leaves: tuple[int, ...]
    fan_in: int
    fan_out: int
    sources: tuple[int, ...]
    weight: Array
    data: Array | None
    output: Array
    scale: Any


class Seen(NamedTuple):
    """A value on its way: of which leaves it is made, whether the input is in it, from which layers it comes."""

    value: Any
    leaves: frozenset[int] = frozenset()
    moving: bool = False
    sources: frozenset[int] = frozenset()
    output_of: int | None = None


class Finder:
    """Runs a program and keeps its layers in the order in which they are met."""

    def __init__(self, weights: Sequence[bool]) -> None:
        self.weights, self.layers, self.missed = weights, [], set()

    def run(self, program: Any, values: Sequence[Seen]) -> list[Seen]:
        body = program.jaxpr
        env = dict(zip(body.constvars, map(Seen, program.consts))) | dict(zip(body.invars, values))

        def read(atom):
            return Seen(atom.val) if isinstance(atom, Literal) else env[atom]

        for equation in body.eqns:
            env.update(zip(equation.outvars, self.step(equation, [read(atom) for atom in equation.invars])))
        return [read(atom) for atom in body.outvars]

    def step(self, equation: JaxprEqn, values: list[Seen]) -> list[Seen]:
        inner = jaxpr.called(equation) or jaxpr.rematerialised(equation)
        if inner is not None:
            return self.run(inner, values)
        results = jaxpr.run(equation, [one.value for one in values])
        leaves, sources = (frozenset().union(*(getattr(one, name) for one in values)) for name in ("leaves", "sources"))
        moving = [one for one in values if one.moving]
        if not moving:
            return [Seen(result, leaves) for result in results]
        still = [one for one in values if not one.moving and any(self.weights[leaf] for leaf in one.leaves)]
        if len(results) == 1 and len(moving) == len(still) == 1:
            sizes = meeting(equation, next(side for side, one in enumerate(values) if one is still[0]))
            if sizes is not None:
                return [self.layer(sizes, still[0], moving[0], results[0], equation.primitive.name == "gather")]
        if any(jaxpr.bodies(held) for held in equation.params.values()):
            self.missed |= {leaf for one in still for leaf in one.leaves if self.weights[leaf]}
        follows = len(results) == len(moving) == 1 and equation.primitive.name in AFFINE
        place = moving[0].output_of if follows else None
        if place is not None:
            scale = self.layers[place].scale
            if equation.primitive.name in ("mul", "div"):
                scale = scale * root_mean_square(results[0]) / root_mean_square(moving[0].value)
            self.layers[place] = self.layers[place]._replace(output=results[0], scale=scale)
        return [Seen(result, frozenset(), True, sources, place) for result in results]

    def layer(self, sizes: tuple[int, int], weight: Seen, data: Seen, product, lookup: bool) -> Seen:
        leaves = tuple(sorted(leaf for leaf in weight.leaves if self.weights[leaf]))
        held = None if lookup else data.value
        number = len(self.layers)
        self.layers.append(
            Layer(leaves, sizes[0], sizes[1], tuple(sorted(data.sources)), weight.value, held, product, 1.0)
        )
        return Seen(product, frozenset(), True, frozenset({number}), number)


def root_mean_square(array: Float[Array, ...]) -> Float[Array, ""]:
    """``sqrt(mean |a|^2)``, half precision widened."""
    return jnp.sqrt(jnp.mean(jnp.abs(array).astype(jnp.result_type(float)) ** 2))


def meeting(equation: JaxprEqn, side: int) -> tuple[int, int] | None:
    """``(fan_in, fan_out)`` of the weight that is operand ``side``; None where the equation is no layer."""
    name, shape = equation.primitive.name, jaxpr.shape(equation.invars[side])
    if name == "dot_general":
        contracting, batch = equation.params["dimension_numbers"]
        fan_in = math.prod(shape[axis] for axis in contracting[side])
        groups = math.prod(shape[axis] for axis in batch[side])
        return fan_in, math.prod(shape) // max(fan_in * groups, 1)
    if name == "conv_general_dilated" and side == 1:
        out = shape[equation.params["dimension_numbers"].rhs_spec[0]]
        return math.prod(shape) // out, out
    if name == "gather" and side == 0:
        return 1, math.prod(shape[1:])
    return None


def layers_of(apply: Callable[..., Any], params: Params, x: Any) -> tuple[Any, tuple[Layer, ...], set[int]]:
    """``(f, layers, leaves that are met in a loop or a branch and so are not read)`` of ``f = apply(params, x)``.

    A weight is a leaf of two or more axes. It is met in a product, a convolution or a lookup of rows. What scales a
    layer's output, or adds to it, independently of x, belongs to it: a multiplier, a bias.

    Args:
        apply: ``(params, x) -> f``.
        params, x: its arguments, arrays or tracers.
    """
    leaves, structure = jax.tree.flatten(params)
    inputs, of_x = jax.tree.flatten(x)

    def flat(*values):
        return apply(
            jax.tree.unflatten(structure, values[: len(leaves)]), jax.tree.unflatten(of_x, values[len(leaves) :])
        )

    program = jaxpr.trace(flat, *leaves, *inputs)
    finder = Finder([len(jaxpr.shape(variable)) >= 2 for variable in program.jaxpr.invars[: len(leaves)]])
    given = [Seen(leaf, frozenset({number})) for number, leaf in enumerate(leaves)]
    given += [Seen(one, moving=True) for one in inputs]
    f = [one.value for one in finder.run(program, given)]
    return f, tuple(finder.layers), finder.missed
