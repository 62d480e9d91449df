"""How a shard keeps images: the FragmentStore protocol, LMDB (default), later other engines."""
