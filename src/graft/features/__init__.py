"""Features of a frozen prefix: computed once, kept on disk, shared by runs."""
