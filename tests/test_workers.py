import dataclasses
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tas_ray.workers import BUCKET_BYTES, FileCheckpoints, Workers, read_state, write_state


def a_state(number):
    return {"phase": "search", "fit": {"epochs_done": number, "module": {"weight": torch.full((3,), float(number))}}}


def test_a_state_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "deep" / "state.pt"
    write_state(a_state(2), path)
    read = read_state(path)
    assert read["fit"]["epochs_done"] == 2
    assert torch.equal(read["fit"]["module"]["weight"], torch.full((3,), 2.0))


def test_checkpoints_start_empty_and_keep_the_latest_state_only(tmp_path):
    checkpoints = FileCheckpoints(tmp_path / "state.pt")
    assert checkpoints.load() is None
    for number in (1, 2):
        checkpoints.save(a_state(number), {"loss": 1.0})
    loaded = checkpoints.load()
    assert loaded is not None
    assert loaded["fit"]["epochs_done"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_write_that_breaks_off_leaves_the_state_before_it(tmp_path):
    path = tmp_path / "state.pt"
    write_state(a_state(1), path)
    with pytest.raises(Exception, match="pickle"):
        write_state({"phase": (lambda: None)}, path)
    assert read_state(path)["fit"]["epochs_done"] == 1


@pytest.mark.parametrize("damage", ["truncated", "rubbish"])
def test_a_damaged_state_is_refused_by_name_and_with_the_way_out(tmp_path, damage):
    path = tmp_path / "state.pt"
    write_state(a_state(1), path)
    path.write_bytes(path.read_bytes()[:200] if damage == "truncated" else b"no state")
    with pytest.raises(ValueError, match=r"state\.pt cannot be read .* move it aside"):
        read_state(path)


def test_one_worker_leads_and_sums_to_itself():
    alone = Workers()
    tensors = [torch.ones(2), torch.arange(3.0)]
    alone.sum_(tensors)
    assert alone.leads
    assert alone.agree(True)
    assert torch.equal(tensors[1], torch.arange(3.0))


def work_of_a_rank(rank: int, world: int, meeting: str, queue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    workers = Workers(rank=rank, world=world)
    large = torch.full((BUCKET_BYTES // 4 + 5,), float(rank))
    tensors = [torch.full((2, 3), rank + 1.0), large, torch.tensor([rank], dtype=torch.float64), torch.ones(1)]
    workers.sum_(tensors)
    workers.wait()
    seen = [tensor.flatten()[-1].item() for tensor in tensors]
    queue.put((rank, seen, [str(tensor.dtype) for tensor in tensors], workers.agree(rank == 0), workers.leads))
    dist.destroy_process_group()


def test_three_workers_sum_tensors_of_any_size_and_type_and_follow_the_first(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=work_of_a_rank, args=(rank, 3, str(tmp_path / "meeting"), queue)) for rank in range(3)
    ]
    for process in processes:
        process.start()
    answers = sorted(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    for rank, seen, dtypes, agreed, leads in answers:
        assert seen == [6.0, 3.0, 3.0, 3.0]
        assert dtypes == ["torch.float32", "torch.float32", "torch.float64", "torch.float32"]
        assert agreed
        assert leads == (rank == 0)


def test_workers_are_values_that_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Workers().rank = 1  # type: ignore[misc]
