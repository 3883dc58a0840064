"""Several parts together, with a real RabbitMQ, PostgreSQL or SMTP server."""
