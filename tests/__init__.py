"""The tests, by what they need.

unit/         a module each, in one process; the folders are those of mailroom/
integration/  several parts with a real RabbitMQ, PostgreSQL, SMTP or IMAP server
acceptance/   what a user types and sees: commands, pages in a browser, examples, whole roads
faults/       processes that are killed, links that are cut; the mail server's log judges
services/     the real servers that tests rest on
tools/        commands of their own: contract, fuzz, pictures, clients, the table of the house
"""
