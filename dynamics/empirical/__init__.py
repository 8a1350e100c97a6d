"""Kernels of finite networks: the empirical NTK and NNGP, exact, for any pure function."""

from typing import TYPE_CHECKING

from dynamics import statistics
from dynamics.empirical.functions import (
    EmpiricalKernel,
    NtkImplementation,
    empirical_kernel_fn,
    empirical_nngp_fn,
    empirical_ntk_fn,
    empirical_ntk_plan,
    empirical_ntk_vp_fn,
)
from dynamics.empirical.kernel_and_gradient import KernelAndGradient, empirical_ntk_and_vjp_fn
from dynamics.empirical.matrix_free import (
    flat_kernel,
    ntk_effective_dimension,
    ntk_eigenpairs,
    ntk_label_alignment,
    ntk_operator,
    ntk_trace,
)
from dynamics.empirical.parts import class_blocks, empirical_ntk_parts_fn
from dynamics.empirical.tile_plan import DEFAULT_BUDGET, Plan
from dynamics.program.on_cpus import shifted_convolutions
from dynamics.types import gone

__all__ = [
    "DEFAULT_BUDGET",
    "EmpiricalKernel",
    "KernelAndGradient",
    "NtkImplementation",
    "Plan",
    "class_blocks",
    "empirical_kernel_fn",
    "empirical_nngp_fn",
    "empirical_ntk_and_vjp_fn",
    "empirical_ntk_fn",
    "empirical_ntk_parts_fn",
    "empirical_ntk_plan",
    "empirical_ntk_vp_fn",
    "flat_kernel",
    "ntk_effective_dimension",
    "ntk_eigenpairs",
    "ntk_label_alignment",
    "ntk_operator",
    "ntk_trace",
    "shifted_convolutions",
]

if not TYPE_CHECKING:
    __getattr__ = gone(__name__, now=statistics, NtkOperator="dynamics.linalg.Operator")
