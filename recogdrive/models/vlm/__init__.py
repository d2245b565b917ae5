"""The driving vision-language model: InternVL3 of transformers, run under JAX."""
