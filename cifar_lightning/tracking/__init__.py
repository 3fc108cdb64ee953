"""What a run records: its folder, metrics, console output, plots and W&B run."""
