"""Two processes share two cores here: one thread per test process keeps results and times steady."""

import signal

import pytest
import torch
from serving import TOKEN

torch.set_num_threads(1)
# A shell that starts us in the background has SIGINT ignored; processes that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def token():
    """Clients show the token that servers of `serving` ask for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPD_TEACHER_TOKEN", TOKEN)
        yield
