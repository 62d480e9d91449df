"""The public client of a cluster, asynchronous and blocking, and the codecs of its values."""
