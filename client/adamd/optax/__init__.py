"""`optax.adam` and `optax.adamw` whose state lives at a server.

tx = adamd.optax.adam(1e-3)                                    # the server at $ADAMD_URL
state = tx.init(params)

@jax.jit
def train_step(params, state, batch):
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    updates, state = tx.update(grads, state, params, value=loss)
    return optax.apply_updates(params, updates), state

They are `optax.GradientTransformationExtraArgs`: they run under ``jax.jit``, in ``jax.lax.scan`` and ``cond``, in
optax's chains, masks and ``inject_hyperparams``, in flax's ``nnx.Optimizer`` and ``TrainState``, by an ordered callback
to the host. The state is a pytree of two small arrays, a count and the session's id, and may be checkpointed; updates
have the dtypes that optax gives them; a pytree without leaves makes no session. ``jax.eval_shape`` sends nothing. Some
things are different, because the session at the server holds the parameters:

- ``update`` needs the parameters, and they have to be what its last updates led to: what follows adamd in a chain must
  not change the updates. What comes before it (clipping, say) may do as it likes.
- ``params + updates`` is the session's parameter bit for bit where that lies between half of the old one and twice it;
  elsewhere (a sign changes, say) it may miss by one rounding of the update and one of the sum. That does not add up:
  each update leads to the session's parameters anew. `Transformation.step` returns them themselves, always the same
  bits.
- A step counts once. The last one may be asked for again with the same gradient, and gives the same answer; another
  gradient from the same state is refused. So `optax.MultiSteps`, which computes updates and throws them away, gets an
  error at its second: take the mean of the gradients instead.
- Compiled code turns an error into `jax.errors.JaxRuntimeError`, with adamd's words in it; within
  ``with tx.typed_errors():`` it is raised as what it was, and without ``jit`` always.
- Under ``jit`` with arrays that are sharded over several devices the first device calls back with the whole. There an
  error cannot be raised (the other devices would wait until XLA ends the process): it is logged, parameters and updates
  are NaN from there on and the count is -1; ``typed_errors`` raises it. On XLA's CPU devices a step may take a minute
  at most: ``timeout=30`` gives up before. XLA_FLAGS=--xla_cpu_collective_call_terminate_timeout_seconds=600 waits.

``vmap``, ``pmap``, ``shard_map`` and differentiation through the update are refused: each would step once for every
slice. A client is closed, and the process ends, when the steps under way are done; after Ctrl-C those that have not
begun are dropped.
"""

from adamd.optax.transformations import AdamState, Around, Transformation, adam, adamw

__all__ = ["AdamState", "Around", "Transformation", "adam", "adamw"]
