"""On-policy distillation: the student writes, the teacher reads what the student really wrote, the student learns from that."""

__version__ = "0.1.0"
