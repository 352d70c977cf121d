"""What each of two gloo ranks runs in test_torch_ranks.py: python ranks.py URL DIRECTORY NAME, with RANK and the like."""

import sys
import warnings
from pathlib import Path

import torch
from digits import batches, flat, loss_of, network
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import adamd
import adamd.torch
from adamd import errors

URL, DIRECTORY, NAME = sys.argv[1], Path(sys.argv[2]), sys.argv[3]


def half(batch):
    x, y = batch
    rank = distributed.get_rank()
    return x[rank::2], y[rank::2]


def caught(act):
    """The class and the words of what is raised, or None."""
    try:
        act()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def gradients(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def training(told, kind):
    """DDP over half batches each; a layer frozen for a while; a new lr on the way."""
    model = network()
    if kind != "float32":
        model = model.to(torch.bfloat16)
    ddp = DistributedDataParallel(model)
    optimizer = adamd.torch.AdamW(model.parameters(), url=URL, labels={"run": "ranks"})
    seen = []
    for number, batch in enumerate(batches(10)):
        optimizer.zero_grad()
        loss = loss_of(ddp, half(batch))
        loss.backward()
        if number in (4, 5):
            model[0].weight.grad = None
        if number == 7:
            optimizer.param_groups[0]["lr"] = 0.01
        seen.append(gradients(model))
        optimizer.step()
    told[kind] = {"gradients": seen, "parameters": flat(model), "id": optimizer.session.id}
    told[kind] |= {"labels": optimizer.session.info()["labels"], "at": optimizer.session.info()["step"]}
    return model, optimizer


def errors_and_states(told, model, optimizer):
    """What fails on one rank is raised on both, and both go on; any rank reads the state by itself."""
    rank = distributed.get_rank()

    def stepped():
        optimizer.step()
        return flat(model)

    before = flat(model).clone()
    if rank == 0:
        model[7].bias.grad[1] = float("nan")
    told["bad gradient"] = caught(stepped)
    if rank == 0:
        model[7].bias.grad[1] = 0.0
    if rank == 1:
        model[7].bias.grad = None
    told["other gradients"] = caught(stepped)
    if rank == 1:
        model[7].bias.grad = torch.zeros(10)
        with torch.no_grad():
            model[7].bias.add_(1)
    told["changed on rank 1"] = caught(stepped)
    optimizer.refresh()
    told["refreshed"] = torch.equal(flat(model), before)
    stepped()
    told["went on"] = flat(model)
    if rank == 1:  # alone: it is no collective
        told["state"] = optimizer.state_dict()
        torch.save(told["state"], DIRECTORY / "state.pt")
    distributed.barrier()
    told["step"] = optimizer.session.step_number if rank == 0 else None
    with torch.no_grad():
        model[7].bias.add_(float(rank))  # rank 0's counts
    optimizer.load_state_dict(torch.load(DIRECTORY / "state.pt", weights_only=True))
    told["not yet"] = caught(lambda: optimizer.session)
    stepped()
    told["loaded"] = flat(model)
    told["bias"] = model[7].bias.detach().clone()


def names(told):
    """Resuming gives both ranks the session's parameters and settings, whatever they had."""
    rank = distributed.get_rank()
    first = network(seed=rank)
    optimizer = adamd.torch.Adam(first[3:].parameters(), lr=0.02, url=URL, session=NAME)
    loss_of(first, next(batches(1))).backward()
    optimizer.step()
    other = network(seed=5 + rank)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        resumed = adamd.torch.Adam(other[3:].parameters(), lr=9.0, url=URL, session=NAME)
    told["resumed warnings"] = sum("lr is 0.02 there and 9.0 here" in str(one.message) for one in said)
    told["resumed"] = flat(other[3:])
    told["resumed lr"] = resumed.param_groups[0]["lr"]
    told["same"] = torch.equal(flat(first[3:]), flat(other[3:]))
    loss_of(other, next(batches(1))).backward()
    resumed.step()
    resumed.add_param_group({"params": other[:3].parameters()})
    resumed.step()
    told["grown"] = flat(other[3:])


def refusals(told):
    rank = distributed.get_rank()
    told["no server"] = caught(lambda: adamd.torch.Adam(network().parameters(), url="http://127.0.0.1:9", timeout=0.3))
    odd = torch.nn.Linear(2 + rank, 2)
    told["odd"] = caught(lambda: adamd.torch.Adam(odd.parameters(), url=URL))
    # A rank that cannot even say what it has.
    strange = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64 if rank == 1 else torch.float32))
    told["complex on rank 1"] = caught(lambda: adamd.torch.Adam([strange], url=URL))
    alone = adamd.torch.Adam(odd.parameters(), url=URL, process_group=False)
    if rank == 1:
        odd(torch.ones(1, 3)).sum().backward()
        alone.step()
    told["alone"] = alone.session.step_number
    groups = [distributed.new_group([0]), distributed.new_group([1])]
    told["group of one"] = adamd.torch.Adam(odd.parameters(), url=URL, process_group=groups[rank]).session.id
    other = groups[1 - rank]
    told["not a member"] = caught(lambda: adamd.torch.Adam(odd.parameters(), url=URL, process_group=other))
    pair = distributed.new_group([0, 1])
    both = adamd.torch.Adam([torch.nn.Parameter(torch.full((2,), float(rank)))], url=URL, process_group=pair)
    told["pair"] = both.session.id


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    distributed.init_process_group("gloo")
    told = {}
    model, optimizer = training(told, "float32")
    errors_and_states(told, model, optimizer)
    training(told, "bfloat16")
    names(told)
    refusals(told)
    torch.save(told, DIRECTORY / f"rank{distributed.get_rank()}.pt")
    assert issubclass(errors.BadGradient, adamd.AdamdError)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
