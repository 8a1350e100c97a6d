"""What comes of runs: claims, figure, report and index pages, and files for other programs."""
