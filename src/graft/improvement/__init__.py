"""Proposals that improve a data set: wrong labels, images out of place, what to label next, what more data would buy."""
