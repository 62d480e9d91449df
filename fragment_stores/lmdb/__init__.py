"""The engine that keeps shards in LMDB: one environment a shard, one file an environment."""
