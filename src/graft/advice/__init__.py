"""Which network to train on a data set, how much of it, and how good it will be, from probes of its features."""
