"""HTTP as every route speaks it: bodies, lists in pages, idempotency keys, answers."""
