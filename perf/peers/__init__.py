"""Peers that a wake is measured against: Redis as people use it, and ZeroMQ with nothing done to the bytes."""
