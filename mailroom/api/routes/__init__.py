"""The routes, one topic a module."""
