"""Stock diffusion models with small functions around them."""
