"""Two queues, a worker each: the coffee does not wait behind the beer. The Procfile says what to type."""
