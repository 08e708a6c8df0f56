"""Memory of results that were let go of is handed out again, and never while anyone holds a part of it."""

import threading

import pytest

torch = pytest.importorskip("torch")

from fastdiff.kernels import _memory as kernels_memory  # noqa: E402
from fastdiff.nn import _memory  # noqa: E402
from fastdiff.nn import functional as F  # noqa: E402

SHAPE = (64, 1, 64, 128)  # 2 MB


@pytest.fixture(autouse=True)
def nothing_kept():
    _memory.forget()
    yield
    _memory.forget()


def test_memory_is_handed_out_again():
    x = torch.zeros(SHAPE)
    first = _memory.empty_like(x)
    place = first.data_ptr()
    second = _memory.empty_like(x)
    assert second.data_ptr() != place and place % 64 == 0
    del first
    assert _memory.empty_like(x).data_ptr() == place
    assert _memory.empty_like(x.double()).dtype == torch.float64


@pytest.mark.parametrize("part", [lambda t: t[3:5], lambda t: t.numpy(), lambda t: t.numpy()[1], lambda t: t.detach(),
                                  lambda t: t.view(-1).requires_grad_()])
def test_what_holds_a_part_holds_it_all(part):
    x = torch.zeros(SHAPE)
    whole = _memory.empty_like(x)
    place, held = whole.data_ptr(), part(whole)
    del whole
    assert _memory.empty_like(x).data_ptr() != place
    del held
    assert _memory.empty_like(x).data_ptr() == place


def test_results_are_right_when_memory_is_used_again():
    x, k = torch.randn(SHAPE), torch.tensor([[0.5, 2.0, 0.0, 0.0]]).repeat(SHAPE[0], 1)
    kept = []
    for n in range(6):
        e = torch.full(SHAPE, float(n))
        kept.append(F.add_noise(x, k, e)[n:n + 2])
        F.add_noise(e, k, x)
    for n, found in enumerate(kept):
        torch.testing.assert_close(found, 0.5 * x[n:n + 2] + 2 * n)


def test_no_more_is_kept_than_allowed(monkeypatch):
    monkeypatch.setattr(kernels_memory, "MOST", 5 << 20)
    x = torch.zeros(SHAPE)
    several = [_memory.empty_like(x) for _ in range(4)]
    places = [t.data_ptr() for t in several]
    while several:
        del several[0]
    assert [b.ctypes.data for b in kernels_memory._kept] == places[-2:]


def test_small_results_and_other_kinds_come_from_torch():
    for x in (torch.zeros(8), torch.zeros(SHAPE, dtype=torch.int32), torch.zeros(SHAPE, device="meta")):
        found = _memory.empty_like(x)
        assert found.shape == x.shape and found.dtype == x.dtype and found.device == x.device
    assert not kernels_memory._kept


def test_threads_never_share():
    x, wrong = torch.zeros(SHAPE), []

    def work(number):
        for _ in range(100):
            mine = _memory.empty_like(x)
            mine[::9] = number
            if not (mine[::9] == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
