"""Backups of a cluster: made, restored, checked."""
