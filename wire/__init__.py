"""What every process shares: the protocol, its transport, what a cluster is, and errors."""
