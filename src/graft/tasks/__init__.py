"""The commands, each a short story of named steps."""
