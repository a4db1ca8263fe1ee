r"""Several ranks train one network: what they agree on, and what each does by itself.

Pass the wrapped network, `model=ddp` or one sharded by `fully_shard`, and build the optimizer after wrapping.
Letters: g_r the gradient of rank r's rows, g = mean over ranks of g_r, which is what a backward pass leaves.

    perturbation_sync    the second gradient
    "global"             g(w + e),                  e along g: that of one process on the union of the batches
    "per_rank"           mean over r of g_r(w + e_r),  e_r along g_r: m-sharpness with m a rank's batch
    "off"                as if there were no other rank: each trains alone, or the closure averages by itself

"per_rank" leaves the first pass unsynchronised and averages its gradient only where something else than e
needs it: h if it is kept, the mixture with the rest of the batch, a schedule that looks at norms. It needs
DistributedDataParallel: with `fully_shard` no rank ever holds a gradient of its own. Where e lies along what
earlier steps left (`MSAM`, `S2SAM`) both are the same. ESAM picks its rows on each rank among that rank's own.

`fully_shard` takes no parameters without axes: a step size of a whole tensor must have the shape (1,).

Ranks stay bit-equal, and take the same number of passes, because whatever decides is the same on all of them:
norms of averaged gradients, draws that are a function of seed and step, and the share that the schedule asks for
in place of the share that a rank's batch could be cut into. Batches may therefore differ in size; as always with
averaged gradients each rank counts alike, whatever its rows. A rank whose batch is too small to be cut uses the
whole of it for both pieces. The loss returned is that of the rank's own rows.

A rank that dies leaves the others in a collective call, which fails after the timeout of the process group:
choose it in `init_process_group(timeout=...)`.

Checkpoints: `torch.distributed.checkpoint` takes the optimizer as it takes any other. To save:

    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(state, checkpoint_id=folder)

To go on exactly there, with model and optimizer built anew, on as many ranks or on others:

    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qat_vsam.errors import ConfigError, InputError, did_you_mean, explain

SYNCS = ("global", "per_rank", "off")
# Elements that are averaged in one call: enough to be worth one, few enough that their copy is small.
_BUCKET = 1 << 22


class Ranks:
    """The ranks that train the same network, as seen from one of them.

    Args:
        sync: "global", "per_rank" or "off".

    Raises:
        ConfigError: Another sync.

    Example:
        >>> ranks = Ranks()
        >>> ranks.meet(nn.Linear(2, 1), [])
        >>> ranks.several
        False
    """

    def __init__(self, sync: str = "global") -> None:
        if sync not in SYNCS:
            advice = did_you_mean(str(sync), SYNCS)
            raise ConfigError(explain("perturbation_sync", repr(sync), "what ranks do together", advice))
        self.sync = sync
        self._groups: list[Any] | None = None
        self._size = 1
        self._wrappers: list[DistributedDataParallel] = []
        self._shards: list[Any] = []

    @property
    def several(self) -> bool:
        """Whether there is another rank to agree with."""
        return self._size > 1

    @property
    def apart(self) -> bool:
        """Whether each rank ascends along its own gradient."""
        return self.several and self.sync == "per_rank"

    def meet(self, model: nn.Module | None, parameters: Sequence[Tensor], offsets: bool = False) -> None:
        """Find the others, once a process group is up; the first call that finds them decides.

        Args:
            model: The network, wrapped.
            parameters: Those of the optimizer.
            offsets: Whether the perturbation acts behind quantizers.

        Raises:
            InputError: The network is not wrapped, or the wrapper cannot do what was asked for.
        """
        if self._groups is not None or self.sync == "off" or not (dist.is_available() and dist.is_initialized()):
            return
        modules = list(model.modules()) if model is not None else []
        if any(is_sharded(parameter) for parameter in parameters):
            self._meet_shards(modules, parameters, offsets)
        elif dist.get_world_size() > 1:
            self._meet_wrappers(modules)

    @contextmanager
    def unsynchronised(self) -> Iterator[None]:
        """Within the context backward passes leave the rank's own gradient, if that is what e lies along."""
        with ExitStack() as stack:
            for wrapper in self._wrappers if self.apart else ():
                stack.enter_context(wrapper.no_sync())
            yield

    def gather_again(self) -> None:
        """Have the next forward pass gather its weights from the shards.

        After a forward pass without backward, an evaluation for one, the outermost module still holds them whole:
        it would not see a displacement, nor would the model list its shards as parameters.
        """
        for module in self._shards:
            module.reshard()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks, in place. The shapes are the same on all."""
        for bucket in _buckets(tensors) if self.several else ():
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket]).div_(self._size)
            self._sum(flat)
            pieces = flat.split([tensor.numel() for tensor in bucket])
            torch._foreach_copy_(bucket, [piece.view(t.shape) for piece, t in zip(pieces, bucket, strict=True)])

    def mean(self, value: float | Tensor, like: Tensor) -> float | Tensor:
        """The mean of a number over the ranks, on the device of `like`; the number itself if there is but one."""
        if not self.several:
            return value
        dtype = torch.promote_types(like.dtype, torch.float32)
        mean = torch.as_tensor(value, dtype=dtype, device=like.device).detach() / self._size
        self._sum(mean)
        return mean

    def _meet_shards(self, modules: Sequence[nn.Module], parameters: Sequence[Tensor], offsets: bool) -> None:
        from torch.distributed.fsdp import FSDPModule

        key, do = "model", "shard all of them"
        if not all(is_sharded(parameter) for parameter in parameters):
            raise InputError(explain(key, "sharded parameters and whole ones", "parameters of one kind", do))
        if self.sync == "per_rank":
            rule, do = "DistributedDataParallel", 'use perturbation_sync="global"'
            raise InputError(explain("perturbation_sync", '"per_rank" with sharded parameters', rule, do))
        if offsets:
            rule, do = "a perturbation of the weights themselves", 'use perturbation="euclidean"'
            raise InputError(explain("perturbation", "offsets behind the quantizers of sharded weights", rule, do))
        mesh: Any = parameters[0].device_mesh  # type: ignore[attr-defined]
        self._groups = [mesh.get_group(dim) for dim in range(mesh.ndim)]
        self._size = mesh.size()
        self._shards = [module for module in modules if isinstance(module, FSDPModule)]

    def _meet_wrappers(self, modules: Sequence[nn.Module]) -> None:
        self._wrappers = [module for module in modules if isinstance(module, DistributedDataParallel)]
        if not self._wrappers:
            got = f"no DistributedDataParallel or sharded network in a process group of {dist.get_world_size()} ranks"
            do = 'pass model=ddp, not ddp.module, or perturbation_sync="off" if this rank trains alone'
            raise InputError(explain("model", got, "the network as it is wrapped", do))
        if self.sync == "per_rank" and any(wrapper.find_unused_parameters for wrapper in self._wrappers):
            got, do = '"per_rank" with find_unused_parameters=True', 'use perturbation_sync="global"'
            raise InputError(explain("perturbation_sync", got, "parameters that all take part in each pass", do))
        self._groups = [self._wrappers[0].process_group]
        self._size = dist.get_world_size(self._groups[0])

    def _sum(self, tensor: Tensor) -> None:
        for group in self._groups or ():
            dist.all_reduce(tensor, group=group)

    def __getstate__(self) -> dict[str, Any]:
        # Process groups are neither copied nor pickled; a copy meets its ranks anew.
        return Ranks(self.sync).__dict__


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor. (By its mesh: the class takes half a second to import.)"""
    return hasattr(tensor, "device_mesh")


def whole(tensor: Tensor) -> Tensor:
    """The tensor, put together if it is spread over ranks; a sum over shards is then one over all ranks."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return full


def copy_into(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target, shard by shard where they are sharded. Without gradient."""
    if targets:
        torch._foreach_copy_(shards(targets), shards(sources))


def shards(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's parts of tensors that are spread over ranks, others as they are."""
    return [tensor.to_local() if is_sharded(tensor) else tensor for tensor in tensors]  # type: ignore[attr-defined]


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(t.numel() for t in bucket)
        alike = not bucket or (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not alike or size + tensor.numel() > _BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
