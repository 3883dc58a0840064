"""Settings of Flower. Its environment variables (FLOWER_…) do not override them, its command line does."""

# The workers have remote control switched off; Flower learns everything from their events and need not ask.
read_only = True
enable_events = False
inspect_timeout = 100.0  # milliseconds, as no worker replies

# Each start of a worker has a new name; workers that have ended are shown for a day.
purge_offline_workers = 86_400
max_tasks = 10_000
