"""Training recipes. Each is a few lines on `loop.train`; each reads and writes standard checkpoint folders."""
