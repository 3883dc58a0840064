"""A computation that is started over HTTP and asked for its status: the tutorial on Falcon and Celery, on Flask."""
