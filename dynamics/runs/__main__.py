"""Looks after a folder of runs: ``python -m dynamics.runs list|show|compare|export|index|gc|repeat|work``."""

import sys

from dynamics.runs.command.folder import run_main

sys.exit(run_main(sys.argv[1:]))
