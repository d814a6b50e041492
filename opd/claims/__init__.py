"""What a paper says of its method, and the small runs that show it here or do not: one TOML file per method.

claim      a claim and the cases in which it is tried
course     every case as a comparison with tuned rates and seeds
verdict    shown, not shown, or shown only when ...
page       all verdicts with the papers' own numbers, as docs/methods.md
models     students and teachers that are made for a claim
"""
