"""Matrix-free linear algebra on a matvec; knows no model."""

from dynamics.linalg.density import Density, Moments, cumulative, moments, smoothed, spectral_density
from dynamics.linalg.eigen import Eigenpairs, eigenpairs
from dynamics.linalg.extreme import Bound, certified_eigenvalue, extreme_eigenvalues, warm_start
from dynamics.linalg.lanczos import Tridiagonal, three_term, tridiagonalize
from dynamics.linalg.operator import Operator
from dynamics.linalg.subspace import refine
from dynamics.linalg.trace import Estimate, TraceEstimate, mean_and_error, trace

__all__ = [
    "Bound",
    "Density",
    "Eigenpairs",
    "Estimate",
    "Moments",
    "Operator",
    "TraceEstimate",
    "Tridiagonal",
    "certified_eigenvalue",
    "cumulative",
    "eigenpairs",
    "extreme_eigenvalues",
    "mean_and_error",
    "moments",
    "refine",
    "smoothed",
    "spectral_density",
    "three_term",
    "trace",
    "tridiagonalize",
    "warm_start",
]
