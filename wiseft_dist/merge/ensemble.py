"""Ensembles in memory: the models held once, any theta_alpha set in place in a live module."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from wiseft_dist.merge.methods.method import Block, Method, Slices, take_statistics
from wiseft_dist.merge.methods.wise import Wise
from wiseft_dist.merge.threads import for_each
from wiseft_dist.weights.records import Weights

HOST_PIECE = 2**18
"""Elements mixed at a time on the host: what is worked on stays in the cache."""
DEVICE_PIECE = 2**25
"""Elements mixed at a time on a device: temporaries stay small beside the model."""


class Ensemble:
    """A module whose weights can be set to any ensemble of the models.

    With a module in fp32 the weights are bit-identical to those of a written ensemble. Tensors that a model lacks, or
    that are theta_0's own object in every model, are set once: theta_0's, or theta_1's where theta_0 has none; so are
    constants, such as a mask of -inf, and what is equal in all models where the method keeps it so. Other NaN and Inf
    are mixed as they come.

    Attributes:
        varying: The names of the module's tensors that depend on alpha.

    Args:
        module: Receives the weights; its device and dtype decide where and how an ensemble is stored.
        zero_shot: theta_0 by the module's names, in the stored dtype or another, on any device. Tensors that the module
            has not count in the method's statistics, as in a written ensemble.
        finetuned: theta_1, theta_2, ..., likewise. Methods that make one merged model keep that in their place.
        method: How they are merged; WiSE-FT if left out.
        fisher: The diagonal Fisher information of each model, theta_0's first, for methods that ask for it.

    Raises:
        UserError: if the method cannot merge such a model.
    """

    @torch.no_grad()
    def __init__(
        self,
        module: nn.Module,
        zero_shot: Mapping[str, Tensor],
        finetuned: Sequence[Mapping[str, Tensor]],
        *,
        method: Method | None = None,
        fisher: Sequence[Mapping[str, Tensor]] = (),
    ) -> None:
        self.module = module
        self._method = Wise() if method is None else method
        self._mixed: list[tuple[Tensor, Slices]] = []
        self._copied: list[tuple[Tensor, Tensor, Tensor]] = []
        models = [zero_shot, *finetuned]
        shared = [name for name in zero_shot if _differ(name, models)]
        slices = {name: _whole(name, models, fisher) for name in shared if zero_shot[name].is_floating_point()}
        equal = {name for name, whole in slices.items() if _are_equal(whole)}
        constant = {name for name in equal if not slices[name].models[0].isfinite().all()}
        self._take_statistics(slices, constant)
        settled = constant | (equal if self._method.keeps_equal else set())
        varying = set()
        for name, target in module.state_dict(keep_vars=True).items():
            if name in settled:
                target.data.copy_(zero_shot[name].float().reshape(target.shape))
            elif name in slices:
                self._mixed.append((target, self._prepared(slices[name], target.device)))
                varying.add(name)
            elif name in shared and not _is_same(zero_shot[name], finetuned[0][name]):
                self._copied.append((target, zero_shot[name], finetuned[0][name]))
                varying.add(name)
            else:
                source = zero_shot if name in zero_shot else finetuned[0]
                target.data.copy_(source[name].reshape(target.shape))
        self.varying = frozenset(varying)

    @torch.no_grad()
    def set_alpha(self, alpha: float) -> None:
        """Make the module theta_alpha."""
        on_host = [(target.data, slices) for target, slices in self._mixed if target.device.type == "cpu"]
        if on_host:
            self._mix_on_host(on_host, alpha)
        for target, slices in self._mixed:
            if target.device.type != "cpu":
                self._mix(slices, alpha, target.data)
        for target, zero_shot, finetuned in self._copied:
            target.data.copy_((finetuned if alpha == 1.0 else zero_shot).reshape(target.shape))

    def _take_statistics(self, slices: Mapping[str, Slices], constant: Collection[str]) -> None:
        """On the host, wherever the models are: the numbers are those of a written ensemble."""

        def read(block: Block) -> Slices:
            piece = _fp32(slices[block.name].piece(block.start, block.stop), torch.device("cpu"))
            if block.name in constant:
                return replace(piece, models=tuple(map(torch.zeros_like, piece.models)))
            return piece

        take_statistics(self._method, {name: whole.models[0].numel() for name, whole in slices.items()}, read)

    def _prepared(self, slices: Slices, device: torch.device) -> Slices:
        """As :meth:`Method.prepare`, piece by piece. The merged model is held where theta_1 was."""
        endpoint = torch.empty_like(slices.models[1], dtype=torch.float32)
        for start, stop in _pieces(slices, device):
            prepared = self._method.prepare(_fp32(slices.piece(start, stop), device))
            if prepared.endpoint is None:
                return slices
            endpoint[start:stop] = prepared.endpoint
        return replace(slices, models=slices.models[:1], fisher=(), endpoint=endpoint)

    def _mix_on_host(self, mixed: Sequence[tuple[Tensor, Slices]], alpha: float) -> None:
        """Fill tensors by as many threads as torch would take, none of which waits for another after each operation."""
        outs = [_flat(target) for target, _ in mixed]
        pieces = [
            (slices, out, start, stop)
            for (_, slices), out in zip(mixed, outs, strict=True)
            for start, stop in _pieces(slices, out.device)
        ]

        is_inference = torch.is_inference_mode_enabled()

        def mix(piece: tuple[Slices, Tensor, int, int]) -> None:
            slices, out, start, stop = piece
            with torch.inference_mode(is_inference), torch.no_grad():  # threads begin in neither
                self._method.mix(_fp32(slices.piece(start, stop), out.device), alpha, out[start:stop])

        for_each(pieces, lambda: mix, num_threads=torch.get_num_threads())
        for (target, _), out in zip(mixed, outs, strict=True):
            _store(out, target)

    def _mix(self, slices: Slices, alpha: float, target: Tensor) -> None:
        """Fill a tensor on a device."""
        out, slices = _flat(target), _moved(slices, target.device)
        for start, stop in _pieces(slices, target.device):
            piece = _fp32(slices.piece(start, stop), target.device)
            self._method.mix(piece, alpha, out[start:stop])
        _store(out, target)


def load_weights(
    weights: Weights,
    module: nn.Module,
    *,
    device: torch.device,
    carried: Mapping[str, Tensor] | None = None,
    others: Collection[str] = (),
) -> dict[str, Tensor]:
    """The tensors that a module needs, in their stored dtype, on a device. Those that are nowhere are left out.

    Args:
        weights: Where they are read from.
        module: Decides which, and their shapes.
        device: Where they go.
        carried: Tensors to take as they are, in place of those that ``weights`` has not.
        others: Names of tensors that are loaded too, and stay on the host.
    """
    shapes = {name: target.shape for name, target in module.state_dict().items()}
    loaded = {} if carried is None else {name: tensor for name, tensor in carried.items() if name not in weights}
    for name in shapes.keys() & weights.keys():
        loaded[name] = weights.read(name).reshape(shapes[name]).to(device)
    for name in (set(others) & weights.keys()) - shapes.keys():
        loaded[name] = weights.tensor(name)
    return loaded


def _differ(name: str, models: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether all models have the tensor, and not all the same object."""
    return all(name in model for model in models) and any(model[name] is not models[0][name] for model in models)


def _whole(name: str, models: Sequence[Mapping[str, Tensor]], fisher: Sequence[Mapping[str, Tensor]]) -> Slices:
    """A tensor as it is held: flat, of any dtype, on any device."""
    return Slices(
        name,
        0,
        tuple(model[name].detach().reshape(-1) for model in models),
        tuple(information[name].detach().reshape(-1) for information in fisher),
    )


def _are_equal(slices: Slices) -> bool:
    """Whether a tensor is the same in all models, bit for bit in fp32."""
    bits = slices.models[0].float().view(torch.int32)
    return all(torch.equal(model.to(bits.device, torch.float32).view(torch.int32), bits) for model in slices.models[1:])


def _is_same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of integers or masks are equal."""
    if first.dtype != second.dtype or first.numel() != second.numel():
        return False
    return torch.equal(first.reshape(-1), second.to(first.device).reshape(-1))


def _flat(target: Tensor) -> Tensor:
    """The elements in row-major order: the tensor's own, or memory for them."""
    return target.view(-1) if target.is_contiguous() else torch.empty_like(target.flatten())


def _store(out: Tensor, target: Tensor) -> None:
    if not target.is_contiguous():
        target.copy_(out.view(target.shape))


def _pieces(slices: Slices, device: torch.device) -> list[tuple[int, int]]:
    size = HOST_PIECE if device.type == "cpu" else DEVICE_PIECE
    numel = slices.models[0].numel()
    return [(start, min(start + size, numel)) for start in range(0, numel, size)]


def _moved(slices: Slices, device: torch.device, dtype: torch.dtype | None = None) -> Slices:
    """The slices on a device; those that are there already are not copied."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype or tensor.dtype, non_blocking=device.type != "cpu")

    return replace(
        slices,
        models=tuple(map(move, slices.models)),
        fisher=tuple(map(move, slices.fisher)),
        endpoint=None if slices.endpoint is None else move(slices.endpoint),
    )


def _fp32(slices: Slices, device: torch.device) -> Slices:
    return _moved(slices, device, torch.float32)
