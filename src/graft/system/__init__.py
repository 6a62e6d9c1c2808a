"""Machine, processes, files and network; nothing here depends on experiments."""
