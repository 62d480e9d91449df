"""The router: plans, scatters and gathers under a deadline; Cluster and AgentState for an agent host."""
