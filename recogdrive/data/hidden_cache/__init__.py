"""Hidden states of the VLM on disk: written once, read at every step of the planner's training."""
