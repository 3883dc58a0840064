"""Measures the service."""
