"""Runs compared: tables, Markdown and one HTML page."""
