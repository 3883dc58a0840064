"""A page with buttons that start tasks, and a table that follows them: the Django tutorial, on Flask."""
