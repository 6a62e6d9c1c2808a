"""The families of networks, each in its own module; importing them imports no torch."""
