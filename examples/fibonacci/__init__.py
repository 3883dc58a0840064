"""A computation started over HTTP, which then reports its status: the Falcon tutorial, on Flask."""
