"""The harness `perf chaos`: a steady load of wakes against a cluster that a script of faults is done to."""
