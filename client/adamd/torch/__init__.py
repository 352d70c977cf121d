"""`torch.optim.Adam` and its family, whose state lives at a server.

optimizer = adamd.torch.Adam(model.parameters(), lr=0.001)      # the server at $ADAMD_URL
for x, y in batches:
    optimizer.zero_grad()
    loss_fn(model(x), y).backward()
    optimizer.step()

AdamW, NAdam, RAdam, Adamax, Adagrad, RMSprop and SGD are here too. They are `torch.optim.Optimizer`s: param groups,
closures, schedulers, hooks and ``state_dict()`` work as they do there, and a ``state_dict()`` loads into torch's own
optimizer of the same name and back. Three things are different, because the session at the
server, not the model, holds the parameters:

- Who writes to the parameters between two steps (in place, or by ``p.data = …``) gets an error at the next one, which
  says what to do; before the first step such values are taken over. A write through ``p.data``'s own methods
  (``p.data.clamp_()``) leaves no trace in torch; it is seen by comparing values, of large parameters some thousand at
  each step. To clamp after each step give ``lower`` and ``upper``: the server keeps them.
- `torch.optim.Adam`'s ``foreach``, ``fused``, ``capturable`` choose between implementations; here they only travel.
  ``differentiable=True`` is refused: a step at a server cannot be differentiated through.
- ``optimizer.state`` is read from the server when it is looked into, and has an entry for each parameter from the first
  moment; who writes into it has a new session made from it by the next step. ``param_groups`` keep the base lr under
  a ``schedule``: `scheduled_lr` tells what the next step takes.
- The optimizer cannot be pickled or deep-copied; its ``state_dict()`` can.

Where `torch.distributed` is initialised, the optimizers of all ranks are one, as under DistributedDataParallel: rank 0
sends its gradients (DDP has averaged them) and the others get the answer. So they are made, stepped and refreshed on
all ranks together, and what fails on one raises on all. Rank 0's settings count. ``state_dict()`` may be called on any.
"""

from adamd.torch.optimizers import SGD, Adagrad, Adam, Adamax, AdamW, Around, NAdam, RAdam, RMSprop

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Adamax", "Around", "NAdam", "RAdam", "RMSprop"]
