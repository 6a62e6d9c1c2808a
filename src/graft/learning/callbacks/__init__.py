"""Lightning callbacks of a training run, one per file; `build.build_callbacks` makes those of a configuration."""
