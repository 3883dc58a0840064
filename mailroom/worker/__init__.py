"""A worker: what it is made of, and its sweeper."""
