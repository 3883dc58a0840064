"""What every process needs, whatever it does: threads that are kept running, modules that load late, a log that never stops it."""
