"""ScaPre and its variants: cross-attention keys and values edited in closed form."""
