"""The fault suite: real processes under faults, judged by the mail server's own log.

load.py       clients that post mails at a bounded rate, and note every answer
rig.py        web, workers, broker, database and mail server of one run, private to it
ledger.py     triggers in the run's database that count what the sweeper had to recover
judge.py      the counters of RabbitMQ's Jepsen suite: ok, lost, recovered, unexpected, duplicated
trouble.py    the faults that `soak` draws from
scenarios.py  one fault at one moment, chosen by what the mail server holds; what it has to come to
test_*.py     each scenario once, in `make test`
soak.py       `make soak`: random faults over a long load
mutations.py  `make mutations`: removes one protection at a time and expects a scenario to turn red
scale.py      `make scale`: a backlog of a million rows
"""
