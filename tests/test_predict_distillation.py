"""Self-distillation: against students solved one by one, its limits, and the sign of the best weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics import stax
from dynamics.theory import predict

KERNEL = stax.serial(stax.Dense(64, 1.5, 0.1), stax.Erf(), stax.Dense(1, 1.0, 0.1)).kernel


@pytest.fixture
def problem(x64):
    x, x_test, y = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(((7, 3), (5, 3), (7, 2))))
    return KERNEL(x, None, "ntk"), KERNEL(x_test, x, "ntk"), y


def ridge(k, y, lam):
    return np.linalg.solve(np.asarray(k) + lam * np.eye(len(k)), y)


@pytest.mark.parametrize("xi", [-0.7, 0.0, 0.4, 1.0])
def test_generations_are_students_solved_one_by_one(xi, problem):
    k, k_test, y = problem
    lam = 0.3 * float(jnp.trace(k)) / 7
    predict_fn = predict.self_distillation(k, y, 0.3)
    target = y
    for generation in (1, 2, 3, 4):
        dual = ridge(k, target, lam)
        np.testing.assert_allclose(predict_fn(xi, generation), k @ dual, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(predict_fn(xi, generation, k_test), k_test @ dual, rtol=1e-9, atol=1e-12)
        target = (1 - xi) * y + xi * (k @ dual)
    absolute = predict.self_distillation(k, y, lam, True)
    np.testing.assert_allclose(absolute(xi, 3, k_test), predict_fn(xi, 3, k_test), rtol=1e-12)
    if xi < 1:
        limit = k_test @ ridge(k, y, lam / (1 - xi))
        np.testing.assert_allclose(predict_fn(xi, None, k_test), limit, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(predict_fn(xi, 400, k_test), limit, rtol=1e-9, atol=1e-12)
    else:
        assert float(jnp.abs(predict_fn(xi, None)).max()) < 1e-12  # it forgets everything


def test_the_student_is_the_teacher_and_its_slope_in_the_logarithm_of_the_ridge(problem):
    k, k_test, y = problem

    def teacher(log_ridge):
        return predict.self_distillation(k, y, jnp.exp(log_ridge))(0.0, 1, k_test)

    value, slope = jax.jvp(teacher, (jnp.log(0.3),), (1.0,))
    students = predict.self_distillation(k, y, 0.3)(jnp.array([[0.0, 0.5], [1.0, -2.0]]), 2, k_test)
    assert students.shape == (2, 2, 5, 2)
    for place, xi in (((0, 0), 0.0), ((0, 1), 0.5), ((1, 0), 1.0), ((1, 1), -2.0)):
        np.testing.assert_allclose(students[place], value + xi * slope, rtol=1e-9)
    # xi* = -lam R'(lam) / (2 |slope|^2): against the risk's own derivative
    truth = jnp.ones((5, 2))
    rise = jax.grad(lambda u: jnp.sum((teacher(u) - truth) ** 2))(jnp.log(0.3))
    best = predict.optimal_mixing(value, students[1, 0], truth)
    np.testing.assert_allclose(best, -rise / (2 * jnp.sum(slope**2)), rtol=1e-9)
    risks = jnp.sum((value + (best + jnp.array([-0.1, 0.0, 0.1]))[:, None, None] * slope - truth) ** 2, (1, 2))
    assert int(jnp.argmin(risks)) == 1


def test_limits(problem):
    k, _, y = problem
    small = predict.self_distillation(k, y, 1e-12)
    np.testing.assert_allclose(small(1.0, 3), y, atol=1e-8)  # interpolation teaches nothing
    assert np.isnan(predict.self_distillation(k, y, 0.1)(2.0, None)).any()  # xi s > 1: no limit
    twice = jnp.concatenate([k, k[:1]])
    twice = jnp.concatenate([twice, twice[:, :1]], 1)  # a duplicate input, no ridge
    flat = predict.self_distillation(twice, jnp.concatenate([y, y[:1]]), 0.0)(1.0, 3, twice[:1])
    np.testing.assert_allclose(flat[0], y[0], atol=1e-8)


@pytest.mark.parametrize("generation", [0, 1.5, "2"])
def test_misuse(generation, problem):
    k, _, y = problem
    with pytest.raises(ValueError, match=r"^generation: got"):
        predict.self_distillation(k, y, 0.1)(1.0, generation)
    with pytest.raises(ValueError, match=r"^diag_reg: got"):
        predict.self_distillation(k, y, -0.1)


def test_the_best_weight_of_integers_and_of_other_shapes():
    values = [jnp.array([value], jnp.uint8) for value in (2, 1, 4)]
    assert float(predict.optimal_mixing(*values)) == -2
    with pytest.raises(ValueError, match=r"target: got .*allowed: the same shape"):
        predict.optimal_mixing(jnp.ones((3, 1)), jnp.ones((3, 1)), jnp.ones(3))
