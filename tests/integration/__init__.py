"""Several parts together, with a real RabbitMQ, PostgreSQL, SMTP or IMAP server."""
