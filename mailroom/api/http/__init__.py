"""HTTP as every route speaks it: bodies, pages of lists, idempotency keys, waiting, answers."""
