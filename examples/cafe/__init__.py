"""Two queues with a worker each, so that coffee never waits behind beer. The Procfile has the commands."""
