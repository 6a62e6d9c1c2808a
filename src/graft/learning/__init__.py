"""How a network learns: the LightningModule, its callbacks, loggers and checkpoints."""
