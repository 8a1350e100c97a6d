"""Command lines: of experiments, of the gallery, and of folders of runs."""
