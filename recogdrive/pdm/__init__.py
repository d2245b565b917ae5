"""NAVSIM's PDM score as one batched, jittable function: simulator, scene container, metrics, scorer. Needs no torch."""
