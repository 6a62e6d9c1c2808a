"""Proposals that improve a data set: wrong labels, odd images, what to label next, what more images would buy."""
