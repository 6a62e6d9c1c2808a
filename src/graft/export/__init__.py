"""Export: a network in formats that other programs read."""

from graft.export.format import Format

__all__ = ["Format"]
