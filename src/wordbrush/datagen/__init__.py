"""The data engine: captions to instructions to image pairs, checked, filtered and written to disk."""
