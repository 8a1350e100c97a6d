"""Runs the family's flagship, or the paper named first on the command line."""

from dynamics.runs.cli import main

main(__package__ or __file__)
