"""Celery beat mails a report every day at seven.

To see one now: `REPORT_EVERY_SECONDS=10 make example NAME=periodic`.
"""
