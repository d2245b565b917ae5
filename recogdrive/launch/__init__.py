"""Starts runs: several on this machine, the trials of a sweep, one on rented chips. Imports neither torch nor jax."""
