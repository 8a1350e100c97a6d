"""Ways to move a state, the one time loop that moves it, and the map of that loop over lanes."""

from typing import TYPE_CHECKING

from dynamics.evolve.central import CentralStart, CentralState, adaptive_central_flow, central_flow
from dynamics.evolve.descent import DescentState, adam, descent, gradient_descent, minibatch, training_batch
from dynamics.evolve.flow import gradient_flow, ode
from dynamics.evolve.kernel_descent import KernelDescentState, kernel_descent
from dynamics.evolve.lane import Lane, LaneState
from dynamics.evolve.linearized import LinearizedState, linearized
from dynamics.evolve.mirror import mirror
from dynamics.evolve.outcome import OutcomeMap, outcome_map
from dynamics.evolve.over_tasks import TasksState, over_tasks, task_readings
from dynamics.evolve.plasticity import (
    ContinualBackpropState,
    HiddenState,
    ShrinkAndPerturbState,
    continual_backprop,
    shrink_and_perturb,
)
from dynamics.evolve.simulate import Carry, every, log_steps, simulate
from dynamics.evolve.study import Drawn, study
from dynamics.evolve.td import Transitions, fresh_batches, td
from dynamics.types import gone

__all__ = [
    "Carry",
    "CentralStart",
    "CentralState",
    "ContinualBackpropState",
    "DescentState",
    "Drawn",
    "HiddenState",
    "KernelDescentState",
    "Lane",
    "LaneState",
    "LinearizedState",
    "OutcomeMap",
    "ShrinkAndPerturbState",
    "TasksState",
    "Transitions",
    "adam",
    "adaptive_central_flow",
    "central_flow",
    "continual_backprop",
    "descent",
    "every",
    "fresh_batches",
    "gradient_descent",
    "gradient_flow",
    "kernel_descent",
    "linearized",
    "log_steps",
    "minibatch",
    "mirror",
    "ode",
    "outcome_map",
    "over_tasks",
    "shrink_and_perturb",
    "simulate",
    "study",
    "task_readings",
    "td",
    "training_batch",
]

_STUDY = "dynamics.evolve.study({'eta': [...], 'seed': range(8)}, draw, make, read, ...)"
if not TYPE_CHECKING:
    __getattr__ = gone(
        __name__,
        Lanes=_STUDY,
        Program=_STUDY,
        advance="dynamics.evolve.simulate(dynamics, params, data, ...)",
        as_readout="the observables themselves: simulate(..., train=[loss(), ...])",
        lanes=_STUDY,
        run_cells=_STUDY,
        start="dynamics.init(params)",
    )
