"""Small networks as people write them: what each does differently is its name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

SHAPE = (2, 6, 6)


class Net(nn.Module):
    """Parts by name, and a forward of them."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.computed = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.computed(self, x)


def conv(before: int = 2, after: int = 4, **options: object) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, **options)


def block(norm: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(conv(), norm or nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())


def sequence(x: Tensor) -> Tensor:
    """The rows of the picture [n, 6, 12]."""
    return x.transpose(1, 2).flatten(2)


def aliased() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    return Net(lambda m, x: m.body(x).relu(), norm=norm, body=nn.Sequential(conv(), norm))


def hooked() -> nn.Module:
    net = block()
    net[0].register_forward_hook(lambda layer, inputs, out: 2 * out.tanh())
    return net


def hooked_before() -> nn.Module:
    net = block()
    net.register_forward_pre_hook(lambda layer, inputs: (inputs[0] + inputs[0].square(),))
    return net


def hooked_norm() -> nn.Module:
    net = block()
    net[1].register_forward_hook(lambda layer, inputs, out: out.sin())
    return net


def patched() -> nn.Module:
    net = block()
    net[2].forward = lambda x: x.sin()
    return net


def weight_normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(weight_norm(conv()), nn.ReLU(), nn.Flatten())


def tied() -> nn.Module:
    one, other = nn.Linear(12, 12), nn.Linear(12, 12)
    other.weight = one.weight
    return Net(lambda m, x: m.other(m.one(sequence(x)).tanh()), one=one, other=other)


class Gained(nn.BatchNorm2d):
    """A forward and a parameter of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.gain = nn.Parameter(torch.full((1,), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain.tanh()


def parametrized_norm() -> nn.Module:
    class Positive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp()

    norm = nn.BatchNorm2d(4)
    nn.utils.parametrize.register_parametrization(norm, "weight", Positive())
    return block(norm)


def preset_norm(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return norm


def pretrained() -> nn.Module:
    net = nn.Sequential(conv(), preset_norm(nn.BatchNorm2d(4)), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    net[:4].requires_grad_(False)
    return net


def half_frozen() -> nn.Module:
    net = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 3), nn.Flatten())
    net[0].weight.requires_grad_(False)
    return net


def without_gradient() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = m.first(x)
        return m.second(z.relu())

    return Net(forward, first=conv(), second=conv(4, 3))


def written_into() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x -= x.mean((2, 3), keepdim=True)
        return m.body(x.mul_(2))

    return Net(forward, body=block())


class Counting(nn.Module):
    """Writes to a buffer, and reads another."""

    def __init__(self) -> None:
        super().__init__()
        self.body = block()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("shift", torch.full((2, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.body(x + self.shift) * self.calls


def branching() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        z = m.first(x)
        return m.second(z) if m.first.weight.sum() > 0 else m.second(-z)

    return Net(forward, first=conv(), second=block(nn.Identity())[1:])


def vision_transformer() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        z = m.patches(x).flatten(2).mT
        z = torch.cat([m.token.expand(len(z), -1, -1), z], 1) + m.place
        return m.layers(z)[:, 0]

    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True, norm_first=True)
    parts = {"token": nn.Parameter(torch.randn(1, 1, 8)), "place": nn.Parameter(torch.randn(1, 10, 8))}
    layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Net(forward, patches=nn.Conv2d(2, 8, 2, 2), layers=layers, **parts)


def squeeze_and_excite() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        z = m.conv(x)
        return z * m.gate(z.mean((2, 3)))[..., None, None]

    return Net(forward, conv=conv(), gate=nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()))


def fused_attention() -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = (z.unflatten(-1, (2, 3)).transpose(1, 2) for z in m.all(sequence(x)).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v)

    return Net(forward, all=nn.Linear(12, 18))


ZOO: dict[str, Callable[[], nn.Module]] = {
    "plain": block,
    "aliased layer": aliased,
    "weight norm": weight_normed,
    "parametrized weight norm": lambda: nn.Sequential(parametrizations.weight_norm(conv()), nn.ReLU(), nn.Flatten()),
    "spectral norm by hook": lambda: nn.Sequential(nn.utils.spectral_norm(conv()), nn.ReLU(), nn.Flatten()),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(conv()), nn.ReLU(), nn.Flatten()),
    "orthogonal": lambda: nn.Sequential(nn.Flatten(), parametrizations.orthogonal(nn.Linear(72, 5))),
    "hook": hooked,
    "hook before": hooked_before,
    "hook on normalisation": hooked_norm,
    "forward exchanged": patched,
    "gate of one channel": lambda: Net(lambda m, x: x * torch.sigmoid(m.conv(x)), conv=conv(2, 1)),
    "sum with one channel": lambda: Net(lambda m, x: m.wide(x) + m.narrow(x), wide=conv(), narrow=conv(2, 1)),
    "linear on maps": lambda: nn.Sequential(conv(), nn.Linear(6, 3), nn.Flatten()),
    "lstm": lambda: Net(lambda m, x: m.rnn(sequence(x))[0][:, -1], rnn=nn.LSTM(12, 5, batch_first=True)),
    "gru": lambda: Net(lambda m, x: m.rnn(sequence(x))[1][-1], rnn=nn.GRU(12, 5, 2, batch_first=True)),
    "attention": lambda: Net(
        lambda m, x: m.mha(*[sequence(x)] * 3)[0], mha=nn.MultiheadAttention(12, 2, batch_first=True)
    ),
    "fused attention": fused_attention,
    "encoder layer": lambda: Net(
        lambda m, x: m.layer(sequence(x)).mean(1), layer=nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
    ),
    "vision transformer": vision_transformer,
    "branch on values": branching,
    "one norm twice": lambda: Net(
        lambda m, x: m.norm(m.second(m.norm(m.first(x)).relu())), first=conv(), norm=nn.BatchNorm2d(4), second=conv(4)
    ),
    "one block twice": lambda: Net(lambda m, x: m.body(m.body(x)), body=nn.Sequential(conv(2, 2), nn.BatchNorm2d(2))),
    "norm subclass": lambda: block(Gained(4)),
    "parametrized norm": parametrized_norm,
    "norm without parameters": lambda: block(nn.BatchNorm2d(4, affine=False, momentum=None)),
    "norm without averages": lambda: block(nn.BatchNorm2d(4, track_running_stats=False)),
    "pretrained and frozen": pretrained,
    "half frozen": half_frozen,
    "no gradient": without_gradient,
    "dropout": lambda: nn.Sequential(conv(), nn.Dropout2d(0.5), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5)),
    "writes to its input": written_into,
    "relu in place": lambda: nn.Sequential(nn.ReLU(inplace=True), conv(), nn.ReLU(inplace=True), nn.Flatten()),
    "writes to a buffer": Counting,
    "instance norm": lambda: block(nn.InstanceNorm2d(4, affine=True)),
    "layer norm": lambda: nn.Sequential(conv(), nn.LayerNorm([4, 6, 6]), nn.PReLU(4), nn.Flatten()),
    "group norm": lambda: block(nn.GroupNorm(2, 4)),
    "squeeze and excite": squeeze_and_excite,
    "depthwise": lambda: nn.Sequential(conv(2, 4, groups=2), nn.Conv2d(4, 3, 1), nn.Hardswish(), nn.Flatten()),
    "tied weights": tied,
    "convolution in time": lambda: Net(
        lambda m, x: m.body(sequence(x).mT), body=nn.Sequential(nn.Conv1d(12, 4, 3), nn.BatchNorm1d(4), nn.ReLU())
    ),
    "einsum": lambda: Net(
        lambda m, x: torch.einsum("nchw,hk->nck", x, m.weight), weight=nn.Parameter(torch.rand(6, 3))
    ),
    "padding": lambda: nn.Sequential(conv(2, 3, padding_mode="reflect"), nn.Upsample(scale_factor=2), nn.Flatten()),
}


@dataclass(frozen=True)
class Animal:
    """A model of the zoo."""

    name: str

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        return ZOO[self.name]()


def train_norms(module: nn.Module) -> nn.Module:
    """The module in evaluation, but for batch normalisation by the batch at hand, where its parameters may move."""
    module.eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train(any(p.requires_grad for p in layer.parameters()) or not list(layer.parameters()))
    return module
