"""Pictures, figures and tables of a run's predictions, in TensorBoard and on the terminal."""
