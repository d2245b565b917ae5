"""The embedded town: seeded procedural roads, traffic and an expert ego, as the same records real logs give."""
