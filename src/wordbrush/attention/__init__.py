"""Control of a U-Net's attention while it samples, and of the latents by what the attention shows."""
