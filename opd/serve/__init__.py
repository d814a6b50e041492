"""`opd serve`: a model that reads and writes for students in other processes, numbers packed as they are.

wire.py       what travels: a question, the blocks of an answer
limits.py     what is refused, with which sentence
identity.py   which model this is: hashes of weights, head and tokenizer
bearer.py     the token that clients show
work.py       questions become passes of the engine
desk.py       who waits, whose turn it is, and the one thread that computes
counters.py   what was done, for a terminal and for Prometheus
app.py        the addresses
server.py     from a model to a process that listens
"""
