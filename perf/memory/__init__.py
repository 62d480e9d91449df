"""What storms and agents cost in memory."""
