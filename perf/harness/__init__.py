"""What every measurement needs: agents, clusters for them, child processes, times, the disk."""
