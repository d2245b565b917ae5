"""Scenes to score in, from NAVSIM logs and nuPlan maps: corrected route, centre line, PDM-Closed."""
