"""Jobs, and who runs them."""
