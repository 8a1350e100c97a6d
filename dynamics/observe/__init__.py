"""What to read while a state moves: a file a topic, each factory giving an ``Observable``."""

from typing import TYPE_CHECKING

from dynamics import statistics
from dynamics.observe.cka import cka
from dynamics.observe.coherence import coherence
from dynamics.observe.compose import joined, prefixed, since_start
from dynamics.observe.density import density, gauss_newton_density, hessian_density, layer_densities, ntk_density
from dynamics.observe.directions import random_direction
from dynamics.observe.eigenvalues import eigenvalues, hessian_eigenvalues, layer_eigenvalues
from dynamics.observe.functional_dimension import FunctionalDimension, functional_dimension
from dynamics.observe.geometry import dual_gaussianity, dual_norms
from dynamics.observe.gradients import breakpoints, layer_gradients
from dynamics.observe.jacobian import jacobian
from dynamics.observe.learning_coefficient import LocalLearningCoefficient, local_learning_coefficient
from dynamics.observe.loss import accuracy, loss, scores
from dynamics.observe.matching import weight_matching
from dynamics.observe.noise import batch_sharpness, gradient_noise, hessian_trace
from dynamics.observe.ntk import NtkReadings, ntk, ntk_of_state
from dynamics.observe.rank import end_to_end, movement, weight_ranks
from dynamics.observe.seldom import seldom
from dynamics.observe.sharpness import (
    WarmStart,
    preconditioned_sharpness,
    sharpness,
    sharpness_drift,
    top_eigenvalue,
)
from dynamics.observe.slice import Slice, slice
from dynamics.observe.units import dead_units
from dynamics.observe.watch import Watch, watch
from dynamics.types import gone

__all__ = [
    "FunctionalDimension",
    "LocalLearningCoefficient",
    "NtkReadings",
    "Slice",
    "WarmStart",
    "Watch",
    "accuracy",
    "batch_sharpness",
    "breakpoints",
    "cka",
    "coherence",
    "dead_units",
    "density",
    "dual_gaussianity",
    "dual_norms",
    "eigenvalues",
    "end_to_end",
    "functional_dimension",
    "gauss_newton_density",
    "gradient_noise",
    "hessian_density",
    "hessian_eigenvalues",
    "hessian_trace",
    "jacobian",
    "joined",
    "layer_densities",
    "layer_eigenvalues",
    "layer_gradients",
    "local_learning_coefficient",
    "loss",
    "movement",
    "ntk",
    "ntk_density",
    "ntk_of_state",
    "preconditioned_sharpness",
    "prefixed",
    "random_direction",
    "scores",
    "seldom",
    "sharpness",
    "sharpness_drift",
    "since_start",
    "slice",
    "top_eigenvalue",
    "watch",
    "weight_matching",
    "weight_ranks",
]

if not TYPE_CHECKING:
    __getattr__ = gone(
        __name__,
        now=statistics,
        as_stateful="the function itself: plain functions of (params, batch) are lifted",
        readout="dynamics.types.Observable.of_view(lambda view: {...})",
    )
