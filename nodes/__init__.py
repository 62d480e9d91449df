"""The fragment node: read path, writer, shard ownership; and the launcher that supervises nodes."""
