"""The parts that every process shares: protocol, transport, cluster, errors."""
