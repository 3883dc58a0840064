"""Tools that look at the code itself; none of them is a test."""
