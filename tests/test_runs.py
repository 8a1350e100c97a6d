"""The run directory from inside: durable against pure, packing, checkpoints, reading while writing."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dynamics.evolve import every, gradient_descent, lanes, ode, simulate
from dynamics.losses import half_mse
from dynamics.runs import Unusable, checkpoint, load, open_run, pacing
from dynamics.runs.files import pack, packed, plain, sealed, unpack, unsealed
from dynamics.runs.journal import Journal
from dynamics.types import Batch


def linear(params, x):
    return x @ params


def problem(key):
    kx, ky = jax.random.split(key)
    return Batch(jax.random.normal(kx, (12, 4)), jax.random.normal(ky, (12, 1))), jnp.ones((4, 1))


def read(state, data):
    return {"loss": half_mse(linear(state.params, data.x), data.y), "params": state.params}


def test_durable_equals_pure_bit_for_bit(precision, key, tmp_path, monkeypatch):
    """Also when every piece is one committed chunk, and again when all of it is only read back."""
    monkeypatch.setattr(pacing, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(pacing, "COMMIT_SHARE", 1e9)
    batch, params = problem(key)
    run = gradient_descent(linear, half_mse, 0.1, batch_size=5)
    pure = simulate(run, read, run.init(params), batch, 300, key, every(7, 300))
    for _ in range(2):
        with open_run(tmp_path / "run", {}) as held:
            kept = held.simulate(run, read, run.init(params), batch, 300, key, every(7, 300))
            assert len(held.journal.chunks("call-0")[0]) > 2
        jax.tree.map(np.testing.assert_array_equal, pure, kept)
        jax.tree.map(np.testing.assert_array_equal, pure[1].values, load(tmp_path / "run").records["call-0"].values)


def test_a_run_with_no_time_for_commits_makes_the_one_that_ends_it(key, tmp_path, monkeypatch):
    monkeypatch.setattr(pacing, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(pacing, "COMMIT_SHARE", 1e-9)
    batch, params = problem(key)
    run = gradient_descent(linear, half_mse, 0.1)
    with open_run(tmp_path / "run", {}) as held:
        held.simulate(run, read, run.init(params), batch, 300, key, every(7, 300))
        assert len(held.journal.chunks("call-0")[0]) == 1


@pytest.mark.parametrize("piece", [0.01, 0.5])
@pytest.mark.parametrize(("cost", "expected"), [(0.001, 0), (0.03, 0), (0.35, 0.35), (0.35, 1), (3, 3)])  # seconds
def test_commits_take_less_than_a_twentieth_of_any_run_that_is_long_enough(cost, expected, piece):
    """On a clock of our own: a run that may end after any piece, with one more commit; and none waits too long."""
    now = last = 0.0
    budget, waits = pacing.Budget(now), []
    budget.expect(int(expected * pacing.SLOW_DISK))
    while now < 200 * max(cost, expected, 0.1):
        now += piece
        if budget.due(now):
            waits.append(now - last)
            budget.committed(now, now + cost)
            now = last = now + cost
        if now >= cost / pacing.COMMIT_SHARE:
            assert (budget.spent + cost) / (now + cost) < 0.05
    assert waits[0] <= max(pacing.COMMIT_SECONDS, 2 * max(expected, cost) / pacing.COMMIT_SHARE) + piece
    assert max(waits[1:]) <= max(pacing.COMMIT_SECONDS, cost / pacing.COMMIT_SHARE) + piece


def test_another_start_or_data_is_refused(key, tmp_path):
    batch, params = problem(key)
    run = gradient_descent(linear, half_mse, 0.1)

    def go(params, batch, steps):
        with open_run(tmp_path / "run", {}) as held:
            held.simulate(run, read, run.init(params), batch, steps, key, [0, 10], label="a")

    go(params, batch, 10)
    for other in ((2 * params, batch, 10), (params, Batch(batch.x + 1, batch.y), 10), (params, batch, 11)):
        with pytest.raises(Unusable, match="was begun with another"):
            go(*other)


def test_another_jax_is_warned_about_recorded_and_goes_on(key, tmp_path, capsys):
    batch, params = problem(key)
    run = gradient_descent(linear, half_mse, 0.1)

    def go(start):
        with open_run(tmp_path / "run", {}) as held:
            return held.simulate(run, read, run.init(start), batch, 10, key, [0, 10], label="a")

    before = go(params)
    with contextlib.closing(Journal(tmp_path / "run" / "run.sqlite")) as journal:
        journal.set(provenance={**journal.get("provenance"), "jax": "0.0.1"})
    after = go(params * (1 + 1e-6))  # a start that another jax would draw: other bits
    said = capsys.readouterr().err
    assert "jax was '0.0.1' and is" in said
    assert "the bits may differ" in said
    assert "the start differs in its bits" in said
    assert "provenance" in [kind for _, kind, _ in load(tmp_path / "run").events]
    jax.tree.map(np.testing.assert_array_equal, before[1].values, after[1].values)


def test_calls_need_distinct_labels_and_no_tracing(key, tmp_path):
    batch, params = problem(key)
    run = gradient_descent(linear, half_mse, 0.1)
    with open_run(tmp_path / "run", {}) as held:
        held.simulate(run, read, run.init(params), batch, 2, key, [0], label="a")
        with pytest.raises(ValueError, match="label: got 'a' a second time"):
            held.simulate(run, read, run.init(params), batch, 2, key, [0], label="a")
        with pytest.raises(ValueError, match="jit or vmap"):
            jax.jit(lambda p: held.simulate(run, read, run.init(p), batch, 2, key, [0])[0])(params)


def test_divergence_is_data_with_the_first_step_recorded(key, tmp_path):
    runs = lanes(lambda rate: ode(lambda x, data: rate * x, 1.0), lambda rate: lambda x, data: {"x": x})
    state = runs.dynamics.init((jnp.array([0.0, 50.0, -0.5]), jnp.ones(3)))
    with open_run(tmp_path / "run", {}) as held:
        held.simulate(runs.dynamics, runs.readout, state, None, 20, key, every(1, 20), label="a")
    found = load(tmp_path / "run")
    x = np.asarray(found.records["a"].values["x"])
    first = int(np.argmax(~np.isfinite(x[:, 1])))
    assert found.diverged == {"a": {"lanes": [1], "of": 3, "first_step": [first]}}
    assert np.all(np.isfinite(x[:, [0, 2]]))


def test_the_loss_before_any_update_is_no_divergence(key, tmp_path):
    """``descent`` reports inf at the start; the lane that then diverges is found where it does."""
    batch, params = problem(key)
    runs = lanes(lambda eta: gradient_descent(linear, half_mse, eta), lambda eta: lambda s, d: {"loss": s.loss})
    state = runs.dynamics.init((jnp.array([0.1, 1e9]), jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), params)))
    with open_run(tmp_path / "run", {}) as held:
        _, record = held.simulate(runs.dynamics, runs.readout, state, batch, 20, key, every(1, 20), label="a")
    loss = np.asarray(record.values["loss"])
    assert np.all(np.isinf(loss[0]))
    first = 1 + int(np.argmax(~np.isfinite(loss[1:, 1])))
    assert load(tmp_path / "run").diverged == {"a": {"lanes": [1], "of": 2, "first_step": [first]}}


def test_a_fork_of_lanes_goes_on_under_their_new_settings(key, tmp_path):
    """A linear decay: what ten steps do under the first settings, times what ten do under the others."""
    runs = lanes(lambda rate: ode(lambda x, data: -rate * x, 0.5), lambda rate: lambda x, data: {"x": x})

    def go(name, steps, rates, source=None):
        state = runs.dynamics.init((jnp.array(rates), jnp.ones(2)))
        with open_run(tmp_path / name, {"rates": rates}, fork_of=source) as held:
            return held.simulate(runs.dynamics, runs.readout, state, None, steps, key, [0, steps])[1].values["x"][-1]

    first = go("first", 10, [0.1, 0.2])
    forked = go("second", 20, [0.4, -0.3], tmp_path / "first")
    np.testing.assert_allclose(forked, first * go("other", 10, [0.4, -0.3]), rtol=1e-5)  # 20 float32 steps
    assert abs(forked[0] / first[0] - first[0]) > 0.1  # its settings did change


def test_a_run_is_read_while_it_is_written(key, tmp_path, monkeypatch):
    monkeypatch.setattr(pacing, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(pacing, "COMMIT_SHARE", 1e9)
    seen = []

    class Tracker:
        def log(self, label, step, values):
            if step and step % 100 == 0:
                seen.append(len(load(tmp_path / "run").records["call-0"].step))

    batch, params = problem(key)
    run = gradient_descent(linear, half_mse, 0.1)
    with open_run(tmp_path / "run", {}, tracker=Tracker()) as held:
        held.simulate(run, read, run.init(params), batch, 500, key, every(10, 500))
    assert seen == sorted(seen)
    assert 0 < seen[0] < 51


def test_a_journal_of_another_format_is_named_so(key, tmp_path, capsys):
    """A later one is refused; the first, whose chunks hung on nothing, is computed again, and said."""
    motion = ode(lambda x, data: -x, 0.1)

    def go():
        with open_run(tmp_path / "run", {}) as held:
            return held.simulate(motion, lambda x, data: {"x": x}, jnp.ones(()), None, 4, key, [0, 4], label="a")

    before = go()
    with contextlib.closing(Journal(tmp_path / "run" / "run.sqlite")) as journal:
        (chunk,) = journal.chunks("a")[0]
        journal.truncate("a", 0)
        journal.commit("a", 0, chunk.step, chunk.last, chunk.state, chunk.rows, "")
        journal.set(schema=1)
    with pytest.raises(Unusable, match="'a' holds chunks of format 1, and this version reads 2; resume the run"):
        load(tmp_path / "run")
    np.testing.assert_array_equal(go()[1].values["x"], before[1].values["x"])
    assert "1 chunk(s) of format 1, not 2, in the journal" in capsys.readouterr().err
    with contextlib.closing(Journal(tmp_path / "run" / "run.sqlite")) as journal:
        journal.set(schema=3, provenance={**journal.get("provenance"), "dynamics": "9.9"})
    for use in (go, lambda: load(tmp_path / "run")):
        with pytest.raises(Unusable, match=r"has format 3, and this version reads up to 2; dynamics 9\.9 began it"):
            use()


def test_checkpoints_keep_dtypes_and_keys_and_refuse_others(tmp_path):
    tree = {"a": jnp.arange(3, dtype=jnp.bfloat16), "key": jax.random.key(7), "flag": jnp.array(True), "none": None}
    state = checkpoint.save(tmp_path, "any text / 💥", 0, checkpoint.host_arrays(tree))
    path = checkpoint.path_of(tmp_path, "any text / 💥", 0, state)
    assert path.parent == tmp_path
    template = jax.eval_shape(lambda: tree)
    back = checkpoint.placed(checkpoint.load(path, state, template), template)
    assert back["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(jax.random.key_data(back["key"]), jax.random.key_data(tree["key"]))
    with pytest.raises(Unusable, match="is bfloat16"):
        checkpoint.load(path, state, {**tree, "a": jnp.zeros(3)})
    with pytest.raises(Unusable, match="holds no"):
        checkpoint.load(path, state, {**tree, "b": jnp.zeros(3)})
    with pytest.raises(Unusable, match="holds 3 arrays"):
        checkpoint.load(path, state, {"a": tree["a"], "key": tree["key"]})
    with pytest.raises(ValueError, match="digest mismatch"):
        checkpoint.load(path, "0" * 64, tree)


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8),
        arrays.arrays(st.sampled_from([np.float32, np.float64, np.int32, np.bool_]), arrays.array_shapes(min_dims=0)),
        max_size=4,
    ),
    st.integers(0, 10**9),
)
def test_packing_is_exact_and_finds_every_flipped_bit(named, where):
    data = pack(named)
    back = unpack(data)
    assert list(back) == list(named)
    for name, value in named.items():
        assert back[name].tobytes() == value.tobytes()
        assert (back[name].dtype, back[name].shape) == (value.dtype, value.shape)
    wrong = bytearray(data)
    wrong[where % len(wrong)] ^= 1 << (where % 8)
    for bad in (bytes(wrong), data[: where % len(data)]):
        with pytest.raises(ValueError, match="digest mismatch"):
            unpack(bad)


def test_a_checkpoint_is_packed_without_a_copy():
    arrays = {"a": np.arange(6.0).reshape(2, 3), "turned": np.arange(6.0).reshape(2, 3).T}
    parts, state = packed(arrays)
    assert np.shares_memory(np.frombuffer(parts[1], np.uint8), arrays["a"])
    unpack(b"".join(parts), state)
    with pytest.raises(ValueError, match="digest mismatch"):
        unpack(b"".join(parts), "0" * 64)


def test_json_is_strict_and_says_what_is_not_finite():
    held = plain({"a": float("nan"), "b": np.float32("inf"), "c": (1, np.int64(2)), "d": np.array([1.0, np.nan])})
    assert held == {"a": None, "a_status": "nan", "b": None, "b_status": "inf", "c": [1, 2], "d": [1.0, None]}
    data = sealed({"a": 1.5})
    assert unsealed(data) == {"a": 1.5}
    with pytest.raises(ValueError, match="damaged"):
        unsealed(data.replace(b"1.5", b"1.6"))


def test_pace_never_skips_or_repeats_a_recorded_step():
    pace = pacing.Pace()
    targets = np.array([0, 1, 2, 100, 101, 5000], np.int32)
    ends, count, now, read = np.append(targets, 6000), len(targets), 0, []
    while count or now < 6000:
        pace.steps = 1 + (7 * len(read) + now) % 900
        piece = pace.piece(now, ends, count)
        assert len(piece.targets) == pacing.WIDTH
        assert np.all(np.diff(piece.targets) >= 0)
        read += piece.targets[piece.read].tolist()
        passed, now = int(piece.read.sum()), int(piece.targets[-1])
        ends, count = ends[passed:], count - passed
    assert read == targets.tolist()
