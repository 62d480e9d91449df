"""The public face of a cluster, asynchronous and blocking, and the values that go through it."""
