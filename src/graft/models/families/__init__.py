"""The families of networks, each in a module of its own; importing them imports no torch."""
