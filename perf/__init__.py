"""The harness: wake storms on a real cluster, with Redis and the limits of raw ZeroMQ measured in the same run."""
