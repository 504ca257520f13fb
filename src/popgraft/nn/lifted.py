"""A module written by the user for one agent, applied to a whole population."""

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from popgraft import tree
from popgraft.errors import ConfigError
from popgraft.nn.blocks import Params

Input = Tensor | dict[str, Tensor]


def _slots(module: nn.Module) -> dict[str, str]:
    """Every place in which a module keeps a trainable parameter, with the name of that parameter.

    A parameter that is tied has several places. (functional_call can tie weights too, but where one layer is registered
    twice it leaves its arguments behind in the module.)
    """
    names = {leaf: name for name, leaf in module.named_parameters() if leaf.requires_grad}
    return {
        f"{prefix}.{name}" if prefix else name: names[leaf]
        for prefix, part in module.named_modules()
        for name, leaf in part.named_parameters(recurse=False, remove_duplicate=False)
        if leaf in names
    }


class Lifted:
    """Any `nn.Module` with one copy of its parameters per member (torch.func.functional_call under vmap).

    Trainable parameters are inherited like all others. Buffers, and parameters that do not require a gradient, are
    constants: every member has those of one module that was made with the seed 0.

    Args:
        make: makes the module, drawing from PyTorch's global generator, which is put back afterwards.
        example: one input, without batch axes.

    Raises:
        ConfigError: the module fails, draws random numbers, changes its buffers, mixes the observations of a batch, or
            does not return [batch, features].
    """

    def __init__(self, make: Callable[[], nn.Module], example: Input) -> None:
        self._make = make
        self._module = self._seeded(0)
        self._shapes = {path: leaf.shape for path, leaf in tree.items(example)}
        self._slots = _slots(self._module)
        generator = torch.Generator().manual_seed(0)
        batch = tree.map(lambda leaf: torch.rand(2, *leaf.shape, generator=generator, dtype=leaf.dtype), example)
        self.n_out = self._trial(batch)
        self._trial_population(batch)

    def _seeded(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self._make()

    @property
    def _name(self) -> str:
        return type(self._module).__name__

    def _trial(self, batch: Input) -> int:
        """Runs one module on a batch of two and returns its number of features."""
        before = {name: leaf.clone() for name, leaf in self._module.named_buffers()}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            state = torch.get_rng_state()
            try:
                out = self._module(batch)
            except Exception as error:
                shapes = {path or "tensor": tuple(leaf.shape) for path, leaf in tree.items(batch)}
                raise ConfigError(
                    f"the module {self._name} fails on a batch of two observations {shapes}: {error}; "
                    "make its forward pass accept float tensors of these shapes"
                ) from error
            random = not torch.equal(state, torch.get_rng_state())
        if random:
            raise ConfigError(
                f"the module {self._name} draws random numbers in its forward pass (dropout?), so that the policy "
                "that is updated would not be the one that acted; remove it, or regularise with weight_decay"
            )
        after = dict(self._module.named_buffers())
        changed = [name for name, leaf in before.items() if not torch.equal(leaf, after[name])]
        if changed:
            raise ConfigError(
                f"the module {self._name} changes its buffers {', '.join(changed)} in its forward pass (batch "
                "normalisation?), so that the policy that is updated would not be the one that acted; use nn.LayerNorm "
                "or nn.GroupNorm, or freeze the layer with .eval()"
            )
        if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != 2:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ConfigError(
                f"the module {self._name} returns {got} for a batch of two observations; return a tensor "
                "[batch, features], for example by ending it with nn.Flatten()"
            )
        with torch.no_grad():
            alone = [self._module(tree.map(lambda leaf, i=i: leaf[[i, i]], batch))[i] for i in range(2)]
        if not torch.allclose(out, torch.stack(alone), rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ConfigError(
                f"the module {self._name} gives an observation other features in other company (statistics of the "
                "batch?), so that environments would change each other's actions; use nn.LayerNorm or nn.GroupNorm, or "
                "batch normalisation whose running statistics are frozen with .eval()"
            )
        return out.shape[1]

    def _trial_population(self, batch: Input) -> None:
        params = tree.stack([self.init(torch.Generator()) for _ in range(2)])
        try:
            with torch.no_grad():
                self(params, tree.stack([batch, batch]))
        except Exception as error:
            raise ConfigError(
                f"the module {self._name} cannot be vectorised over the population by torch.func.vmap: {error}; avoid "
                "recurrent layers, .item(), branches on values and in-place changes of tensors made in its forward pass"
            ) from error

    def init(self, generator: torch.Generator) -> Params:
        """Parameters of a freshly made module, nested by their dotted names."""
        module = self._seeded(int(torch.randint(2**63 - 1, (), generator=generator)))
        fresh = dict(module.named_parameters())
        params: Params = {}
        for name in dict.fromkeys(self._slots.values()):
            *path, last = name.split(".")
            node = params
            for part in path:
                node = node.setdefault(part, {})
            node[last] = fresh[name].detach().clone()
        return params

    def __call__(self, params: Params, x: Input) -> Float[Tensor, "pop *batch n_out"]:
        """Applies the module to [pop, *batch, *shape]."""
        flat = dict(tree.items(x))
        path, first = next(iter(flat.items()))
        leading = first.shape[: first.dim() - len(self._shapes[path])]
        rows = {path: leaf.reshape(leading[0], -1, *self._shapes[path]) for path, leaf in flat.items()}
        self._module.to(first.device)
        named = dict(tree.items(params))
        filled = {slot: named[name] for slot, name in self._slots.items()}
        out: Tensor
        if leading[0] == 1:  # in graphs that are exported, vmap would fix the size of the batch
            only = {path: leaf[0] for path, leaf in rows.items()}
            out = self._apply({slot: leaf[0] for slot, leaf in filled.items()}, tree.restore(x, only))
        else:
            out = vmap(self._apply)(filled, tree.restore(x, rows))
        return out.reshape(*leading, self.n_out)

    def _apply(self, params: dict[str, Tensor], batch: Input) -> Tensor:
        return cast(Tensor, functional_call(self._module, params, (batch,), tie_weights=False))
