"""Ways to move a state, the one time loop that moves it, and the map of that loop over lanes."""

from dynamics.evolve.central import CentralStart, CentralState, adaptive_central_flow, central_flow
from dynamics.evolve.descent import DescentState, adam, descent, gradient_descent, minibatch, training_batch
from dynamics.evolve.flow import gradient_flow, ode
from dynamics.evolve.kernel_descent import KernelDescentState, kernel_descent
from dynamics.evolve.lane import Lane, LaneState
from dynamics.evolve.linearized import LinearizedState, linearized
from dynamics.evolve.simulate import Carry, every, log_steps, simulate
from dynamics.evolve.study import Drawn, study

__all__ = [
    "Carry",
    "CentralStart",
    "CentralState",
    "DescentState",
    "Drawn",
    "KernelDescentState",
    "Lane",
    "LaneState",
    "LinearizedState",
    "adam",
    "adaptive_central_flow",
    "central_flow",
    "descent",
    "every",
    "gradient_descent",
    "gradient_flow",
    "kernel_descent",
    "linearized",
    "log_steps",
    "minibatch",
    "ode",
    "simulate",
    "study",
    "training_batch",
]
