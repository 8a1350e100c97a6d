"""Maps of outcomes and dimensions of their boundaries, against sets whose dimension is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.evolve import outcome, outcome_map
from dynamics.statistics import boundary, box_dimension, pair_dimension


def cantor(levels: int) -> np.ndarray:
    """The middle-thirds set on ``3^levels`` pixels."""
    line = np.ones(1, bool)
    for _ in range(levels):
        line = np.concatenate([line, np.zeros_like(line), line])
    return line


def koch(points: int) -> np.ndarray:
    """The inside of Koch's snowflake."""
    z = np.exp(2j * np.pi * np.arange(4) / 3)
    for _ in range(5):  # edges of 1.4 pixels
        step = np.diff(z) / 3
        parts = np.stack([z[:-1], z[:-1] + step, z[:-1] + step * (1 + np.exp(1j * np.pi / 3)), z[:-1] + 2 * step], 1)
        z = np.append(parts.ravel(), z[-1])
    from matplotlib.path import Path

    grid = np.stack(np.meshgrid(*[np.linspace(-1.3, 1.3, points)] * 2, indexing="ij"), -1).reshape(-1, 2)
    return Path(np.stack([z.real, z.imag], 1)).contains_points(grid).reshape(points, points)


line = np.eye(256, dtype=bool)
third = np.log(2) / np.log(3)
SETS = {
    "a line": (line, 2, 1.0, 1e-12),
    "a row": (np.arange(256)[:, None] == np.zeros(256, int), 2, 1.0, 1e-12),
    "a point": (np.arange(256)[:, None] * np.arange(256) == 255 * 255, 2, 0.0, 1e-12),
    "all": (np.ones((64, 64), bool), 2, 2.0, 1e-12),
    "Cantor's set": (np.outer(cantor(5), np.arange(243) == 7), 3, third, 1e-12),
    "Cantor x line": (np.outer(cantor(5), np.ones(243, bool)), 3, 1 + third, 1e-12),
    "Cantor x Cantor": (np.outer(cantor(5), cantor(5)), 3, 2 * third, 1e-12),
    "Cantor x Cantor, by the wrong base": (np.outer(cantor(5), cantor(5)), 2, 2 * third, 0.15),
}


@pytest.mark.parametrize("name", SETS)
def test_boxes_count_sets_of_known_dimension(name):
    inside, base, dimension, tolerance = SETS[name]
    found = box_dimension(inside, base=base)
    assert abs(found.value - dimension) <= tolerance
    assert found.n >= 2
    assert tolerance > 1e-3 or found.error < 1e-12  # one exponent at all scales


DISC = np.hypot(*np.meshgrid(*[np.linspace(-1.5, 1.5, 512)] * 2)) < 1


@pytest.mark.parametrize(
    ("make", "base", "dimension", "tolerance"),
    [(lambda: DISC, 2, 1.0, 0.03), (lambda: koch(512), 3, np.log(4) / np.log(3), 0.08)],
    ids=["a disc", "Koch's snowflake"],
)
def test_boundaries_of_known_dimension_by_both_estimators(make, base, dimension, tolerance):
    """512 pixels see five octaves of a snowflake; what it lacks is bias, not noise."""
    label = make()
    by_boxes, by_pairs = box_dimension(boundary(label), base=base), pair_dimension(label, base=base)
    assert abs(by_boxes.value - dimension) < tolerance
    assert abs(by_pairs.value - dimension) < tolerance


def test_labels_without_structure_have_a_boundary_that_fills_the_plane():
    noise = np.random.default_rng(0).random((256, 256)) < 0.5
    assert box_dimension(boundary(noise)).value > 1.99
    assert abs(pair_dimension(noise).value - 2) < 0.02


def test_an_accelerator_takes_more_pixels_at_a_time(monkeypatch):
    """Seen by how many pixels one call of the outcome is mapped over; the labels are the same."""

    def label(x, y):
        return x**2 + y**2 < 1.3

    def seen():
        taken, own = [], outcome._pixels
        with monkeypatch.context() as patch:
            patch.setattr(
                outcome, "_pixels", lambda fn, parallel, *rest: taken.append(parallel) or own(fn, parallel, *rest)
            )
            return taken, outcome_map(label, (-2.0, 2.0), (-2.0, 2.0), points=128)[0].label

    on_cpu, few = seen()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    elsewhere, many = seen()
    assert (on_cpu, elsewhere) == ([4096], [128**2])
    np.testing.assert_array_equal(few, many)


def test_one_label_has_no_dimension():
    assert np.isnan(box_dimension(boundary(np.ones((64, 64)))).value)
    assert np.isnan(pair_dimension(np.ones((64, 64))).value)


def test_descent_on_a_quadratic_converges_below_the_edge_of_stability_at_every_zoom():
    """Rates (a, b) of coordinates of curvature 1 and 3 converge for a < 2 and b < 2/3: two lines, at any depth."""

    def descends(a, b, curvature):
        w = jax.lax.fori_loop(0, 400, lambda t, w: w - jnp.stack([a, b]) * curvature * w, jnp.ones(2))
        return jnp.max(jnp.abs(w)) < 1, jnp.sum(w**2)

    maps = outcome_map(descends, (1.0, 3.0), (0.0, 1.0), jnp.array([1.0, 3.0]), points=32, levels=9, parallel=300)
    assert len(maps) == 9
    for one in maps:
        inside = (one.x[:, None] < 2) & (one.y < 2 / 3)
        np.testing.assert_array_equal(one.label, inside)
        assert one.shade.dtype == one.x.dtype == np.float64
        assert boundary(one.label).any()
    np.testing.assert_allclose(np.diff(maps[-1].x), 2 / 32 / 4**8)


def test_pieces_change_nothing_and_a_map_of_one_label_is_not_zoomed():
    def label(x, y):
        return jnp.where(jnp.sin(5 * x) * jnp.cos(3 * y) > 0.3, 1, jnp.where(x > y, 2, 0))

    one, other = (outcome_map(label, (0.0, 3.0), (-1.0, 2.0), points=20, levels=3, parallel=p) for p in (7, 4096))
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a.label, b.label)
        assert a.shade is None
    assert set(np.unique(one[0].label)) == {0, 1, 2}
    assert len(outcome_map(lambda x, y: x > -9, (0.0, 1.0), (0.0, 1.0), points=8, levels=5)) == 1


@pytest.mark.usefixtures("as_users_meet_it")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: outcome_map(lambda x, y: x > y, (1.0, 0.0), (0.0, 1.0)), r"x: got \(1.0, 0.0\); allowed: \(low"),
        (lambda: outcome_map(lambda x, y: x > y, (0.0, 1.0), (0.0, 1.0), points=1), "points: got 1; allowed"),
        (
            lambda: outcome_map(lambda x, y: x > y, (0.0, 1.0), (0.0, 1.0), points=10, levels=2),
            "zoom: got 4 for 10 points; allowed: a divisor",
        ),
        (
            lambda: outcome_map(lambda x, y: x > y, (1.0, 2.0), (0.0, 1.0), points=256, levels=30),
            "levels: got 30; allowed: 17 at most",
        ),
        (
            lambda: outcome_map(lambda x, y: jnp.stack([x, y]), (0.0, 1.0), (0.0, 1.0)),
            r"outcome: got \(2,\) of one pixel",
        ),
        (lambda: outcome_map(lambda x, y: x > y, (0.0, 1.0, 2.0), (0.0, 1.0)), r"x: got \(0.0, 1.0, 2.0\); allowed"),
        (lambda: outcome_map(lambda x, y: x > y, 3.0, (0.0, 1.0)), "x: got 3.0; allowed"),
        (lambda: outcome_map(lambda x, y: x > y, (0.0, 1.0), (0.0, 1.0), candidates=0), "candidates: got 0; allowed"),
        (lambda: boundary(np.full((8, 8), np.nan)), "label: got NaN; allowed"),
        (lambda: pair_dimension(np.full((64, 64), np.nan)), "label: got NaN; allowed"),
        (lambda: box_dimension(np.ones((64, 64)), base=2.0), "base: got 2.0; allowed: an integer"),
        (lambda: boundary(np.ones(3)), r"label: got shape \(3,\); allowed: \[r, c\]"),
        (lambda: box_dimension(np.ones((64, 64)), base=1), "base: got 1; allowed: an integer >= 2"),
        (lambda: pair_dimension(np.ones((6, 6))), r"base: got 2 for a picture of \(6, 6\)"),
    ],
)
def test_what_gives_no_map_is_named(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()
