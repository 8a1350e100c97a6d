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
from dynamics.runs.durable.journal import Journal

PROGRAM = pathlib.Path(__file__).parent / "programs" / "hosts.py"
DURABLE = PROGRAM.with_name("durable_hosts.py")


def start(program, *arguments, **more):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore", **more}
    command = [sys.executable, str(program), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def durable(*arguments):
    """Two processes of one durable run."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [start(DURABLE, process, port, *arguments) for process in range(2)]


def finish(processes):
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def four_devices(tmp_path_factory):
    """The folder with what four devices of one process found, and what one of them found alone."""
    folder = tmp_path_factory.mktemp("four")
    finish([start(PROGRAM, folder, XLA_FLAGS="--xla_force_host_platform_device_count=4")])
    return folder


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder with what two processes found, and their durable runs."""
    folder = tmp_path_factory.mktemp("two")
    finish(durable(folder))
    return folder


@pytest.mark.parametrize("processes", [1, 2])
def test_devices_and_processes_give_the_numbers_of_one_device(four_devices, processes, request):
    expected = np.load(four_devices / "one.npz")
    folder = four_devices if processes == 1 else request.getfixturevalue("two_processes")
    found = np.load(folder / "split.npz")
    assert (found["devices"], found["processes"]) == ((4, 1) if processes == 1 else (2, 2))
    for name in ("w", "loss", "product", "ntk"):
        scale = np.abs(expected[name]).max()
        # sums over 64 samples in another order, through 100 steps of float32
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5 * scale)


def assert_same_run(folder, other):
    mine, theirs = load(folder).records["big"], load(other).records["big"]
    for name, value in {"step": theirs.step, **theirs.values}.items():
        assert {"step": mine.step, **mine.values}[name].tobytes() == value.tobytes(), name
    newest = [max((path / "checkpoints").glob("*.ckpt")).read_bytes() for path in (folder, other)]
    assert newest[0] == newest[1]


def test_a_durable_run_on_two_processes_stops_and_resumes_to_the_same_bits(two_processes):
    """State and data lie over both; a signal to one stops both, a refusal is for both, each has the whole record."""
    assert_same_run(two_processes / "stopped", two_processes / "whole")
    assert len(load(two_processes / "whole").records["big"].step) == 44
    assert load(two_processes / "whole").provenance["process_count"] == 2
    assert "'big' continues in the fork from step 300" in [text for _, _, text in load(two_processes / "forked").events]
    first, second = (np.load(two_processes / f"{process}.npz") for process in range(2))
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
