"""Two processes share two cores here: one thread per test process keeps results and times steady."""

import torch

torch.set_num_threads(1)
