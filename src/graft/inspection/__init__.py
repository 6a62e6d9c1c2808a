"""What `graft inspect` finds out about a data set."""
