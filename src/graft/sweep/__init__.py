"""Sweeps: the grid and Optuna sweepers, their jobs, GPU slots and subprocesses."""
