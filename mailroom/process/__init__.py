"""The parts that every process needs, whatever it does.

They are threads that are kept running, modules that load late, and a log that never stops it.
"""
