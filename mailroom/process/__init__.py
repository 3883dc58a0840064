"""The parts that every process needs: its files, supervised threads, lazy imports, a log that cannot fail."""
