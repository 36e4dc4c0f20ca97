"""Measuring models; what it reports is reproducible from a seed."""
