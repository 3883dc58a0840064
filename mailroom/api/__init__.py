"""HTTP in: JSON requests, JSON answers, problem details (RFC 9457)."""
