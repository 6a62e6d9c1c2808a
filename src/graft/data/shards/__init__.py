"""Data sets packed into shards: tar files in WebDataset's layout, and an index that makes every image addressable."""
