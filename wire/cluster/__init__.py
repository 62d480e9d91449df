"""What a cluster is: its topology, its placement, and the directory that keeps them."""
