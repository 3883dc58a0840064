"""A page with buttons that start work, and a table that watches it: the tutorial on Django and Celery, on Flask."""
