"""Inspection of a data set: unreadable images, duplicates, class balance, effects of resizing."""
