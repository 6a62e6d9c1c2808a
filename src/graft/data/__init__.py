"""Data sets, their splits, and the batches made of them.

This package imports nothing; `transforms`, `datasets`, `sampler` and `datamodule` need torch, the others NumPy.
"""
