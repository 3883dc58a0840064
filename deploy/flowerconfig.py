"""How Flower shows our workers; what the environment says (FLOWER_…) loses, what the command line says wins."""

# Our workers take no orders, as remote control is off; they tell by events what they are and do, and that needs no asking.
read_only = True
enable_events = False
inspect_timeout = 100.0  # milliseconds; a question that nobody answers

# Each start of a worker has a name of its own; those that ended are shown for a day.
purge_offline_workers = 86_400
max_tasks = 10_000
