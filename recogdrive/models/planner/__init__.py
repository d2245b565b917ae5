"""The diffusion planner."""
