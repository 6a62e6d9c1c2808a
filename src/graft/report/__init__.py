"""Comparison of runs: tables, Markdown and an HTML page."""
