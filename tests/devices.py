"""Scripts on forced host devices, each in a process of its own."""

import os
import subprocess
import sys
import textwrap


def run_on_devices(count: int, script: str, *, timeout: float = 300.0) -> None:
    """Runs ``script``, which must print ``equal`` and nothing else."""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, **flags},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
