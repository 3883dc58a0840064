"""Makes a Celery worker of a process: its parts, its sweeper, its settings and signals."""
