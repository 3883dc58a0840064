"""Does the same work inside the request and in the background: why there are workers at all."""
