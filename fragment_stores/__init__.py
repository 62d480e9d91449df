"""Engines that keep the images of a shard: the FragmentStore protocol, LMDB (default), later others."""
