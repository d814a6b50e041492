"""The estimate of a run's memory, held to what small runs were measured to take."""

import numpy as np
import pytest
from torch.profiler import ProfilerActivity, profile

from opd.build import build
from opd.doctor import Case, at_start, memory
from opd.errors import SettingError
from opd.loop import grade
from opd.settings import Settings
from opd.step import gradient, prepare, updates


def case(**given):
    return Case.open(Settings.of(method="local_support", device="cpu", **given))


def peak(work):
    """Bytes of tensors alive at one time while `work` runs, above what was alive before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return int(np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["local_support", "gkd"])
def test_measured_peaks_lie_between_04_and_12_of_the_estimate(method, checkpointing):
    """Answers of full length, as the estimate takes them to be; each phase has been run once before."""
    parameters = {"lam": 1.0, "n": 4} if method == "gkd" else {"k": 8}
    settings = Settings.of(
        method=method, parameters=parameters, max_new=12, batch=16, gradient_checkpointing=checkpointing, device="cpu"
    )
    training = build(settings)
    student, visits, done = training.student, training.source.take(16), {}

    def write():
        done["groups"] = grade(training.task, training.method.sample(training.cast, visits, 0))

    def read():
        done["rows"], done["sequences"] = prepare(done["groups"], training.method, training.cast, 0)

    def learn():
        part = next(updates(done["rows"], training.method.updates, 0))
        gradient(student, part, done["sequences"], training.method, settings.micro_tokens)

    need = memory.estimate(Case(settings, training.method, training.task, training.cast))
    for phase, work in (("writing", write), ("reading", read), ("learning", learn)):
        work()  # libraries allocate once
        assert 0.4 * need.phases[phase] < peak(work) < 1.2 * need.phases[phase], phase
    sizes = [p.numel() * p.element_size() for p in student.parameters()]
    assert need.gradients == sum(sizes) == sum(p.grad.numel() * p.grad.element_size() for p in student.parameters())
    training.optimizer.step()
    moments = [t for state in training.optimizer.state.values() for name, t in state.items() if name != "step"]
    assert need.optimizer == sum(t.numel() * t.element_size() for t in moments)


def test_memory_that_is_not_there(monkeypatch, tmp_path):
    examined = case()
    need = memory.estimate(examined)
    file = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "MEMINFO", file)
    verdicts = []
    for kilobytes in (2 * need.total // 1024, need.certain // 1024, 1):
        file.write_text(f"MemTotal: 999 kB\nMemAvailable: {kilobytes} kB\n")
        (found,) = memory.memory(examined)
        verdicts.append(found.verdict)
    assert verdicts == ["pass", "warn", "fail"]
    with pytest.raises(SettingError, match="--doctor off"):
        at_start(examined)


def test_lora_needs_less():
    lean = memory.estimate(case(lora=2))
    full = memory.estimate(case())
    assert lean.optimizer < full.optimizer / 4 and lean.weights > full.weights
