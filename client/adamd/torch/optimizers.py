"""The optimizers of `adamd.torch`: torch's signatures, defaults and meaning, over `Remote`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

try:
    import torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("adamd.torch needs PyTorch: pip install 'adamd[torch]'", name="torch") from error

from adamd.client import Client, Durability
from adamd.sansio.options import Around
from adamd.session import OnBadGradient
from adamd.torch import kinds
from adamd.torch.remote import Remote

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Adamax", "Around", "NAdam", "RAdam", "RMSprop"]


class Adam(Remote):
    """Adam at a server, with the arguments, the meaning and the defaults of `torch.optim.Adam`.

    The constructor makes the session, so a refusal by the server is known at once. A changed hyperparameter in
    ``param_groups`` is sent with the next step. Parameters whose ``grad`` is None are left out of a step, and their
    count does not change. After any error the model's parameters are what they were, and ``step()`` may be repeated.

    Args:
        params: tensors, (name, tensor) pairs as of ``model.named_parameters()``, or dicts of them with settings of
            their own (param groups), in a fixed order: no set. All float64, or any of float32, bfloat16 and float16.
            A bfloat16 or float16 parameter has a float32 master at the server, and is its value rounded to nearest
            even. The names become the session's. Tensors without names are named by position, group.index, as "0.3".
            Resuming such a session raises where the values show another order, and warns where they show nothing.
        lr: a number, or a tensor of one element.
        betas: decay rates of exp_avg and exp_avg_sq, each in [0, 1).
        eps: added outside the square root.
        weight_decay: 0 or more; added to the gradient (Adam), or shrinking the parameters (AdamW).
        amsgrad: keep the largest exp_avg_sq; the same for all groups.
        foreach: no effect. It chooses between torch's own implementations, as ``fused`` and ``capturable`` do.
        maximize: ascend.
        capturable: no effect.
        differentiable: only False.
        fused: no effect.
        decoupled_weight_decay: as `AdamW`; the same for all groups.
        url: the server's; by default ``$ADAMD_URL``, else this machine's port 8000.
        client: one of your own, instead of a URL; `close` leaves it open.
        session: a name (``[A-Za-z0-9._-]``, at most 128). Where there is one of this name (or id), it is
            resumed: its parameters are copied into the model and its settings into ``param_groups``, with a warning
            where one was given here and differs, unless a scheduler had changed it. "initial_lr" is set there, so a
            scheduler goes on with ``last_epoch=optimizer.session.step_number - 1``, or by its own ``load_state_dict``.
        durability: "memory" stores nothing: the session ends with the server's process.
        labels: your own words, to find it in the list; of a new session.
        on_bad_gradient: "skip" leaves the parameters alone where a gradient has NaN or infinity, and counts it in
            ``optimizer.session.skipped``; "raise" raises `BadGradient`.
        timeout: of a whole call, in seconds, or an `adamd.Timeout`.
        process_group: the ranks that train this model; None is torch.distributed's default group, where that is
            initialised. False: this process by itself.
        around: what surrounds the update at the server (``schedule``, ``clip_norm``, ``lower``, ``ema_decay``,
            ``stop``, …), and how gradients and parameters travel (``encoding``, ``error_feedback``, ``answer_dtype``):
            `adamd.torch.Around` lists them. A session that is resumed keeps its own settings, and a warning says so.
            With an ``encoding`` that drops something, every parameter needs a gradient in every step.

    Raises:
        TypeError: the parameters are in a set.
        WrongDtype, WrongLayout: parameters that no session takes: complex, float64 among others, sharing memory, …; or
            not those of the session that is resumed.
        InvalidSettings: a setting is out of range, or the session is of another kind.
        RetriesExhausted: no server there.

    """

    _kind = kinds.ADAM
    _decoupled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        url: str | None = None,
        client: Client | None = None,
        session: str | None = None,
        durability: Durability = "committed",
        labels: Mapping[str, str] | None = None,
        on_bad_gradient: OnBadGradient = "raise",
        timeout: Any = None,
        process_group: Any = None,
        **around: Unpack[Around],
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        defaults |= {"foreach": foreach, "maximize": maximize, "capturable": capturable, "fused": fused}
        defaults |= {"differentiable": differentiable, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(
            params,
            defaults,
            url=url,
            client=client,
            session=session,
            durability=durability,
            labels=labels,
            on_bad_gradient=on_bad_gradient,
            timeout=timeout,
            process_group=process_group,
            **around,
        )


class AdamW(Adam):
    """AdamW at a server: `Adam` with decoupled weight decay, with the defaults of `torch.optim.AdamW`."""

    _decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **options: Any,
    ) -> None:
        """Make one; ``options`` are `Adam`'s, from ``url`` on."""
        chosen = {"maximize": maximize, "foreach": foreach, "capturable": capturable, "fused": fused}
        own: dict[str, Any] = {**chosen, "differentiable": differentiable, "decoupled_weight_decay": True}
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **own, **options)


class NAdam(Remote):
    """NAdam at a server, with the arguments, the meaning and the defaults of `torch.optim.NAdam`."""

    _kind = kinds.NADAM

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        **options: Any,
    ) -> None:
        """Make one; ``options`` are `Adam`'s, from ``url`` on."""
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        defaults |= {"momentum_decay": momentum_decay, "decoupled_weight_decay": decoupled_weight_decay}
        defaults |= {"foreach": foreach, "capturable": capturable, "differentiable": differentiable}
        super().__init__(params, defaults, **options)


class RAdam(Remote):
    """RAdam at a server, with the arguments, the meaning and the defaults of `torch.optim.RAdam`."""

    _kind = kinds.RADAM

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        **options: Any,
    ) -> None:
        """Make one; ``options`` are `Adam`'s, from ``url`` on."""
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        defaults |= {"foreach": foreach, "capturable": capturable, "differentiable": differentiable}
        super().__init__(params, {**defaults, "decoupled_weight_decay": decoupled_weight_decay}, **options)


class Adamax(Remote):
    """Adamax at a server, with the arguments, the meaning and the defaults of `torch.optim.Adamax`."""

    _kind = kinds.ADAMAX

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        **options: Any,
    ) -> None:
        """Make one; ``options`` are `Adam`'s, from ``url`` on."""
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        defaults |= {"foreach": foreach, "capturable": capturable, "differentiable": differentiable}
        super().__init__(params, defaults, **options)


class Adagrad(Remote):
    """Adagrad at a server, with the arguments, the meaning and the defaults of `torch.optim.Adagrad`."""

    _kind = kinds.ADAGRAD

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **options: Any,
    ) -> None:
        """Make one; ``options`` are `Adam`'s, from ``url`` on."""
        defaults = {"lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        defaults |= {"foreach": foreach, "differentiable": differentiable, "fused": fused}
        super().__init__(params, {**defaults, "initial_accumulator_value": initial_accumulator_value}, **options)


class RMSprop(Remote):
    """RMSprop at a server, with the arguments, the meaning and the defaults of `torch.optim.RMSprop`."""

    _kind = kinds.RMSPROP

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        **options: Any,
    ) -> None:
        """Make one; ``options`` are `Adam`'s, from ``url`` on."""
        defaults = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        defaults |= {"foreach": foreach, "capturable": capturable, "differentiable": differentiable}
        super().__init__(params, {**defaults, "momentum": momentum, "centered": centered}, **options)


class SGD(Remote):
    """SGD at a server, with the arguments, the meaning and the defaults of `torch.optim.SGD`."""

    _kind = kinds.SGD

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        **options: Any,
    ) -> None:
        """Make one; ``options`` are `Adam`'s, from ``url`` on."""
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        defaults |= {"foreach": foreach, "differentiable": differentiable, "fused": fused}
        super().__init__(params, {**defaults, "nesterov": nesterov, "maximize": maximize}, **options)
