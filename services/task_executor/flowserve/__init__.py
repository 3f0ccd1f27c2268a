"""FlowServe, the engine: a master that plans and executors that run what the plan says."""
