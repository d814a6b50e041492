"""Engines run the student: the one here uses plain transformers, others serve or shard."""
