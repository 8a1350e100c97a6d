"""Training predicted from a kernel: gradient flow and descent on outputs, Gaussian-process posteriors.

With the loss ``L = |f - y|^2 / (2 |y|)``, ``|y|`` the number of entries of ``y``, outputs of a network whose
kernel ``Theta`` stays fixed obey ``df/dt = -eta Theta (f - y) / |y|`` (Lee et al. 2019, section 2.2). Names, arguments
and returns are those of neural-tangents' ``predict``. Beside them: the same in discrete steps, with momentum
(``gradient_descent_mse_steps``) and minibatches (``stochastic_gradient_descent_mse``), and with a kernel renewed along
the way (``refreshed_gradient_descent_mse``). Students that learn from their teacher's outputs: ``self_distillation``.
"""

from dynamics.theory.predict.any_loss import ODEState, gradient_descent
from dynamics.theory.predict.distillation import optimal_mixing, self_distillation
from dynamics.theory.predict.ensemble import gradient_descent_mse_ensemble
from dynamics.theory.predict.flow import gradient_descent_mse, max_learning_rate
from dynamics.theory.predict.held_out import leave_one_out
from dynamics.theory.predict.layout import Axes
from dynamics.theory.predict.minibatch import Moments, stochastic_gradient_descent_mse
from dynamics.theory.predict.posterior import Gaussian, Gaussians, gp_inference
from dynamics.theory.predict.refreshed import refreshed_gradient_descent_mse
from dynamics.theory.predict.steps import gradient_descent_mse_steps

__all__ = [
    "Axes",
    "Gaussian",
    "Gaussians",
    "Moments",
    "ODEState",
    "gp_inference",
    "gradient_descent",
    "gradient_descent_mse",
    "gradient_descent_mse_ensemble",
    "gradient_descent_mse_steps",
    "leave_one_out",
    "max_learning_rate",
    "optimal_mixing",
    "refreshed_gradient_descent_mse",
    "self_distillation",
    "stochastic_gradient_descent_mse",
]
