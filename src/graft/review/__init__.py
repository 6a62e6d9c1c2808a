"""What a person sees of runs: tables now, pictures in TensorBoard."""
