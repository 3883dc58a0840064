"""The parts that every process needs: supervised threads, lazy imports, and a log that cannot fail."""
