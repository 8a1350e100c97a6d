"""What to read while a state moves: a file a topic, each factory giving an ``Observable``."""

from dynamics.observe.compose import joined, prefixed, since_start
from dynamics.observe.curvature import (
    WarmStart,
    hessian_eigenvalues,
    preconditioned_sharpness,
    sharpness,
    sharpness_drift,
    top_eigenvalue,
)
from dynamics.observe.delay import first_step, time_ratio, value_at
from dynamics.observe.density import density, gauss_newton_density, hessian_density, layer_densities, ntk_density
from dynamics.observe.fourier import frequency_power, frequency_share, gini, sum_components, top_frequency
from dynamics.observe.groups import component_power, component_share, irreducible_components
from dynamics.observe.loss import accuracy, loss, scores
from dynamics.observe.noise import batch_sharpness, gradient_noise, hessian_trace
from dynamics.observe.ntk import NtkReadings, ntk, ntk_of_state
from dynamics.observe.rank import effective_rank, end_to_end, movement, stable_rank, weight_norm, weight_ranks
from dynamics.observe.representation import label_alignment
from dynamics.observe.seldom import seldom
from dynamics.observe.watch import Watch, watch

__all__ = [
    "NtkReadings",
    "WarmStart",
    "Watch",
    "accuracy",
    "batch_sharpness",
    "component_power",
    "component_share",
    "density",
    "effective_rank",
    "end_to_end",
    "first_step",
    "frequency_power",
    "frequency_share",
    "gauss_newton_density",
    "gini",
    "gradient_noise",
    "hessian_density",
    "hessian_eigenvalues",
    "hessian_trace",
    "irreducible_components",
    "joined",
    "label_alignment",
    "layer_densities",
    "loss",
    "movement",
    "ntk",
    "ntk_density",
    "ntk_of_state",
    "preconditioned_sharpness",
    "prefixed",
    "scores",
    "seldom",
    "sharpness",
    "sharpness_drift",
    "since_start",
    "stable_rank",
    "sum_components",
    "time_ratio",
    "top_eigenvalue",
    "top_frequency",
    "value_at",
    "watch",
    "weight_norm",
    "weight_ranks",
]
