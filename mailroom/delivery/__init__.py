"""The protocol: claim, fence, attempt, record. Read delivery.py first."""
