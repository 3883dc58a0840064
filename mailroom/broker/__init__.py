"""RabbitMQ: our queues, the publisher, and what Celery makes of what comes."""
