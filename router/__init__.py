"""The router: plan, scatter, gather under a deadline; Cluster and AgentState for an agent host."""
