"""Lists every experiment with its expected run time."""

from dynamics.runs.cli import main

main(__package__ or "experiments")
