"""One big run on several devices and processes: the numbers of one device, to rounding; durable ones, to the bit."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from dynamics.runs import load
from dynamics.runs.journal import Journal

PROGRAM = pathlib.Path(__file__).parent / "programs" / "hosts.py"
DURABLE = PROGRAM.with_name("durable_hosts.py")


def start(process, processes, port, out, flags=""):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, str(PROGRAM), str(process), str(processes), str(port), str(out)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(processes):
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "found.npz"
    finish([start(0, 1, 0, out)])
    return dict(np.load(out))


def assert_close(found, expected):
    for name in ("w", "loss", "product", "ntk"):
        scale = np.abs(expected[name]).max()
        # sums over 64 samples in another order, through 100 steps of float32
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5 * scale)


def test_four_devices_in_one_process(one_device, tmp_path):
    finish([start(0, 1, 0, tmp_path / "found.npz", "--xla_force_host_platform_device_count=4")])
    found = dict(np.load(tmp_path / "found.npz"))
    assert (found["devices"], found["processes"]) == (4, 1)
    assert_close(found, one_device)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_two_processes_on_localhost(one_device, tmp_path):
    port = free_port()
    finish([start(process, 2, port, tmp_path / "found.npz") for process in range(2)])
    found = dict(np.load(tmp_path / "found.npz"))
    assert (found["devices"], found["processes"]) == (2, 2)
    assert_close(found, one_device)


def durable(*arguments):
    """Two processes of one durable run."""
    port, environment = str(free_port()), {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
    commands = [[sys.executable, str(DURABLE), str(process), port, *map(str, arguments)] for process in range(2)]
    return [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]


def assert_same_run(folder, other):
    mine, theirs = load(folder).records["big"], load(other).records["big"]
    for name, value in {"step": theirs.step, **theirs.values}.items():
        assert {"step": mine.step, **mine.values}[name].tobytes() == value.tobytes(), name
    newest = [max((path / "checkpoints").glob("*.ckpt")).read_bytes() for path in (folder, other)]
    assert newest[0] == newest[1]


def test_a_durable_run_on_two_processes_stops_and_resumes_to_the_same_bits(tmp_path):
    """State and data lie over both; a signal to one stops both, a refusal is for both, each has the whole record."""
    finish(durable(tmp_path))
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    assert len(load(tmp_path / "whole").records["big"].step) == 44
    assert load(tmp_path / "whole").provenance["process_count"] == 2
    assert "'big' continues in the fork from step 300" in [text for _, _, text in load(tmp_path / "forked").events]
    first, second = (np.load(tmp_path / f"{process}.npz") for process in range(2))
    for name in ("step", "loss", "w"):
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.slow
def test_a_killed_run_on_two_processes_resumes_to_the_same_bits(tmp_path):
    (tmp_path / "whole").mkdir()
    finish(durable(tmp_path / "whole", 2000))
    for after in (2, 5, 9):
        processes = durable(tmp_path, 2000)
        while len(list((tmp_path / "run").glob("checkpoints/*.ckpt"))) < 2 or committed(tmp_path / "run") < after:
            time.sleep(0.02)
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()
    finish(durable(tmp_path, 2000))
    assert_same_run(tmp_path / "run", tmp_path / "whole" / "run")


def committed(folder):
    with contextlib.closing(Journal(folder / "run.sqlite", readonly=True)) as journal:
        return len(journal.chunks("big")[0])
