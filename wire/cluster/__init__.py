"""A cluster on paper and on disk: topology, placement, and the data directory that keeps them."""
