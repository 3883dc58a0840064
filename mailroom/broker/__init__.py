"""Connects to RabbitMQ: the queues, the publisher, and the consumer that hands messages to Celery."""
