"""Memory that storms and agents cost."""
