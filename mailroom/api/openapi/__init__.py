"""The OpenAPI description of this API, and the check of query parameters against it."""
