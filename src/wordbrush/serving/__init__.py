"""The page, and later the service: Wordbrush over the network."""
