"""The run directory from inside: durable against pure, packing, checkpoints, reading while writing."""

import contextlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dynamics.evolve import every, gradient_descent, ode, simulate, study
from dynamics.losses import half_mse
from dynamics.observe import loss
from dynamics.runs import Unusable, load, open_run
from dynamics.runs.durable import checkpoint, pacing
from dynamics.runs.durable.files import pack, packed, plain, unpack
from dynamics.runs.durable.journal import Journal, root
from dynamics.runs.trackers import Tracker
from dynamics.types import Batch, Objective, Observable

L = Objective(lambda params, x: x @ params, half_mse)
READ = [loss(), lambda params, batch: {"params": params}]


def problem(key):
    kx, ky = jax.random.split(key)
    return Batch(jax.random.normal(kx, (12, 4)), jax.random.normal(ky, (12, 1))), jnp.ones((4, 1))


def test_durable_loops_are_called_as_the_pure_ones(tmp_path):
    with open_run(tmp_path / "run", {}) as held:
        assert inspect.signature(held.simulate) == inspect.signature(simulate)
        assert inspect.signature(held.study) == inspect.signature(study)


def test_durable_equals_pure_bit_for_bit(precision, key, tmp_path, monkeypatch):
    """Also when every piece is one committed chunk, and again when all of it is only read back."""
    monkeypatch.setattr(pacing, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(pacing, "COMMIT_SHARE", 1e9)
    batch, params = problem(key)
    run = gradient_descent(L, 0.1, batch_size=5)
    asked = dict(train=READ, steps=300, record_at=every(7, 300), key=key)
    pure = simulate(run, params, batch, **asked)
    for _ in range(2):
        with open_run(tmp_path / "run", {}) as held:
            kept = held.simulate(run, params, batch, **asked)
            assert len(held.journal.chunks("call-0")[0]) > 2
        jax.tree.map(np.testing.assert_array_equal, pure, kept)
        jax.tree.map(np.testing.assert_array_equal, pure[1].values, load(tmp_path / "run").records["call-0"].values)


def test_a_run_with_no_time_for_commits_makes_the_one_that_ends_it(key, tmp_path, monkeypatch):
    monkeypatch.setattr(pacing, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(pacing, "COMMIT_SHARE", 1e-9)
    batch, params = problem(key)
    with open_run(tmp_path / "run", {}) as held:
        held.simulate(gradient_descent(L, 0.1), params, batch, train=READ, steps=300, record_at=every(7, 300))
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
    run = gradient_descent(L, 0.1)

    def go(params, batch, steps):
        with open_run(tmp_path / "run", {}) as held:
            held.simulate(run, params, batch, train=READ, steps=steps, record_at=[0, 10], key=key, label="a")

    go(params, batch, 10)
    for *other, words in (
        (2 * params, batch, 10, "start, key or data"),
        (params, Batch(batch.x + 1, batch.y), 10, "start, key or data"),
        (params, batch, 11, "number of steps"),
    ):
        with pytest.raises(Unusable, match=f"'a' was begun with another {words}"):
            go(*other)


def test_another_jax_is_warned_about_recorded_and_goes_on(key, tmp_path, capsys):
    batch, params = problem(key)
    run = gradient_descent(L, 0.1)

    def go(start):
        with open_run(tmp_path / "run", {}) as held:
            return held.simulate(run, start, batch, train=READ, steps=10, key=key, label="a")

    before = go(params)
    with contextlib.closing(Journal(tmp_path / "run" / "run.sqlite")) as journal:
        journal.set(provenance={**journal.get("provenance"), "jax": "0.0.1"})
    after = go(params * (1 + 1e-6))  # a start that another jax would draw: other bits
    said = capsys.readouterr().err
    assert "jax was '0.0.1' and is" in said
    assert "the bits may differ" in said
    assert "the start or the trace differs" in said
    assert "provenance" in [kind for _, kind, _ in load(tmp_path / "run").events]
    jax.tree.map(np.testing.assert_array_equal, before[1].values, after[1].values)


def test_calls_need_distinct_labels_and_no_tracing(key, tmp_path):
    batch, params = problem(key)
    run = gradient_descent(L, 0.1)
    with open_run(tmp_path / "run", {}) as held:
        held.simulate(run, params, batch, train=READ, steps=2, label="a")
        with pytest.raises(ValueError, match="label: got 'a' a second time"):
            held.simulate(run, params, batch, train=READ, steps=2, label="a")
        with pytest.raises(ValueError, match="jit or vmap"):
            jax.jit(lambda p: held.simulate(run, p, batch, train=READ, steps=2)[0])(params)


def decays(study, rates, steps, dt=0.5, **more):
    """``x' = -rate x`` for each rate."""
    return study(
        {"rate": rates},
        draw=lambda lane: jnp.ones(()),
        make=lambda lane: ode(lambda x, data: -lane.rate * x, dt),
        read=[lambda x, data: {"x": x}],
        data=jnp.zeros(()),
        steps=steps,
        label="a",
        **more,
    )


def test_divergence_is_data_with_the_first_step_recorded(tmp_path):
    with open_run(tmp_path / "run", {}) as held:
        decays(held.study, [0.0, -50.0, 0.5], 20, 1.0, record_at=every(1, 20))
    found = load(tmp_path / "run")
    x = np.asarray(found.records["a"].values["x"])
    first = int(np.argmax(~np.isfinite(x[:, 1])))
    assert found.diverged == {"a": {"lanes": [1], "of": 3, "first_step": [first]}}
    assert np.all(np.isfinite(x[:, [0, 2]]))


def test_the_loss_before_any_update_is_no_divergence(key, tmp_path):
    """``descent`` reports inf at the start; the lane that then diverges is found where it does."""
    batch, params = problem(key)
    with open_run(tmp_path / "run", {}) as held:
        record = held.study(
            {"eta": [0.1, 1e9]},
            draw=lambda lane: params,
            make=lambda lane: gradient_descent(L, lane.eta),
            read=[Observable.of_view(lambda view: {"loss": view.state.loss})],
            data=batch,
            steps=20,
            record_at=every(1, 20),
            label="a",
        )
    loss = record.values["loss"]
    assert np.all(np.isinf(loss[0]))
    first = 1 + int(np.argmax(~np.isfinite(loss[1:, 1])))
    assert load(tmp_path / "run").diverged == {"a": {"lanes": [1], "of": 2, "first_step": [first]}}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fork_draws_again_what_has_taken_no_step(tmp_path, workers, capsys):
    """What was drawn for 2 is no reading at 3."""

    def drawn(name, sizes, source=None):
        with open_run(tmp_path / name, {"sizes": sizes}, fork_of=source, workers=workers) as held:
            read, start = Observable.of_view(lambda view: view.params), lambda lane: {"x": 10.0 * lane.size}
            return held.study({"size": sizes}, start, None, read, steps=0, data=(), label="a").values["x"][-1]

    np.testing.assert_array_equal(drawn("old", [1.0, 2.0]), [10, 20])
    np.testing.assert_array_equal(drawn("new", [1.0, 3.0], tmp_path / "old"), [10, 30])
    assert "starts afresh in the fork: it had taken no step" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fork_of_lanes_goes_on_under_their_new_settings(tmp_path, workers, capsys):
    """A linear decay: what ten steps do under the first settings, times what ten do under the others; also in pieces.

    A fork of more lanes has another shape, or other pieces: it starts afresh, and says so.
    """

    def go(name, steps, rates, source=None):
        with open_run(tmp_path / name, {"rates": rates}, fork_of=source, workers=workers) as held:
            return decays(held.study, rates, steps).values["x"][-1]

    first = go("first", 10, [0.1, 0.2])
    forked = go("second", 20, [0.4, -0.3], tmp_path / "first")
    assert capsys.readouterr().err.count("continues in the fork from step 10") == workers
    np.testing.assert_allclose(forked, first * go("other", 10, [0.4, -0.3]), rtol=1e-5)  # 20 float32 steps
    assert abs(forked[0] / first[0] - first[0]) > 0.1  # its settings did change
    ended = go("ended", 10, [0.4, -0.3], tmp_path / "first")  # nothing to go on with: its numbers are the first's
    assert capsys.readouterr().err.count("starts afresh in the fork: it had ended at step 10") == workers
    np.testing.assert_array_equal(ended, go("other", 10, [0.4, -0.3]))
    wider = go("wider", 20, [0.1, 0.2, 0.4], tmp_path / "first")
    assert "starts afresh in the fork" in capsys.readouterr().err
    np.testing.assert_allclose(wider, go("whole", 20, [0.1, 0.2, 0.4]), rtol=1e-6)
    assert load(tmp_path / "first").records["a"].step[-1] == 10


def test_a_run_is_read_while_it_is_written(key, tmp_path, monkeypatch):
    monkeypatch.setattr(pacing, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(pacing, "COMMIT_SHARE", 1e9)
    seen = []

    def look(label, step, values):
        if step and step % 100 == 0:
            seen.append(len(load(tmp_path / "run").records["call-0"].step))

    batch, params = problem(key)
    with open_run(tmp_path / "run", {}, tracker=Tracker(look, lambda: None)) as held:
        held.simulate(gradient_descent(L, 0.1), params, batch, train=READ, steps=500, record_at=every(10, 500))
    assert seen == sorted(seen)
    assert 0 < seen[0] < 51


def test_a_journal_of_another_format_is_named_so(tmp_path, capsys):
    """A later one is refused; the second is read, not continued; the first, which hung on nothing, is made again."""
    motion = ode(lambda x, data: -x, 0.1)

    def go(name="run", **more):
        with open_run(tmp_path / name, {}, **more) as held:
            return held.simulate(motion, jnp.ones(()), None, train=lambda x, data: {"x": x}, steps=4, label="a")

    before = go()
    with contextlib.closing(Journal(tmp_path / "run" / "run.sqlite")) as journal:
        (chunk,) = journal.chunks("a")[0]
        journal.truncate("a", 0)
        journal.commit("a", 0, chunk.step, chunk.last, chunk.state, chunk.rows, "")
        journal.set(schema=1)
    with pytest.raises(Unusable, match="'a' holds chunks of format 1, and this version reads 4; resume the run"):
        load(tmp_path / "run")
    np.testing.assert_array_equal(go()[1].values["x"], before[1].values["x"])
    assert "1 chunk(s) of format 1, not 4, in the journal" in capsys.readouterr().err
    with contextlib.closing(Journal(tmp_path / "run" / "run.sqlite")) as journal:
        journal.set(schema=2)
    np.testing.assert_array_equal(load(tmp_path / "run").records["a"].values["x"], before[1].values["x"])
    with pytest.raises(Unusable, match=r"format 2, of an earlier version, which this one reads and does not continue"):
        go()
    np.testing.assert_array_equal(go("forked", fork_of=tmp_path / "run")[1].values["x"], before[1].values["x"])
    with contextlib.closing(Journal(tmp_path / "run" / "run.sqlite")) as journal:
        journal.set(schema=5, provenance={**journal.get("provenance"), "dynamics": "9.9"})
    for use in (go, lambda: load(tmp_path / "run")):
        with pytest.raises(Unusable, match=r"has format 5, and this version reads up to 4; dynamics 9\.9 began it"):
            use()


def test_lanes_of_format_2_are_read_as_they_were(tmp_path):
    """They had no axes: readings [T, lanes], time by lane."""
    header = {"steps": 4, "record_at": [0, 4], "dt": [0.5, 1.0], "inputs": ""}
    rows = {"step": np.array([0, 4]), "x": np.arange(4.0).reshape(2, 2)}
    with open_run(tmp_path / "run", {}) as held:
        held.journal.set(schema=2)
        held.journal.begin("lanes", header)
        held.journal.commit("lanes", 0, 4, True, "", pack(rows), root("lanes", header))
    record = load(tmp_path / "run").records["lanes"]
    assert record.time.tolist() == [[0.0, 0.0], [2.0, 4.0]]
    assert (dict(record.axes), record.values["x"].tolist()) == ({}, [[0.0, 1.0], [2.0, 3.0]])


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
    with pytest.raises(ValueError, match="digest: got another"):
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
        with pytest.raises(ValueError, match="digest: got another"):
            unpack(bad)


def test_a_checkpoint_is_packed_without_a_copy():
    arrays = {"a": np.arange(6.0).reshape(2, 3), "turned": np.arange(6.0).reshape(2, 3).T}
    parts, state = packed(arrays)
    assert np.shares_memory(np.frombuffer(parts[1], np.uint8), arrays["a"])
    unpack(b"".join(parts), state)
    with pytest.raises(ValueError, match="digest: got another"):
        unpack(b"".join(parts), "0" * 64)


def test_json_is_strict_and_says_what_is_not_finite():
    held = plain({"a": float("nan"), "b": np.float32("inf"), "c": (1, np.int64(2)), "d": np.array([1.0, np.nan])})
    assert held == {"a": None, "a_status": "nan", "b": None, "b_status": "inf", "c": [1, 2], "d": [1.0, None]}


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
