"""NAD (ICLR'21): a fine-tuned copy teaches the backdoored network where to look, stage by stage.

Li et al., "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks", Section 3; reference:
github.com/bboylyg/NAD, main.py, at.py and config.py (settings there, for WRN-16-1).
As there, an attention map is the sum over channels of |activation|^p, divided by its norm, both compared by their mean
squared difference; the teacher is fine-tuned with the same settings for 10 epochs, and is in eval mode afterwards.
Departures: the stages are found, not written into each network (`layers` names them instead): of every resolution above one
pixel the outermost layer that ends last, no normalisation, and of these the deepest, as many as there are betas. That is
block1-3 of a WRN, layer2-4 of a ResNet. With fewer resolutions the last betas count. Images are moved and flipped as in the
bench, without Cutout.
Not as in BackdoorBench's defense/nad.py, which has a learning rate of 0.01 and runs the student four times a batch, so that its
BatchNorm statistics move four times; there the third tap of a PreActResNet is its average pool, a map of one pixel,
whose loss is always 0, so that layer3 gets the first beta, layer4 the second, and layer2 none.
"""

import copy
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from bench.defenses.base import Candidate, Defense, Repaired
from bench.errors import UserError
from bench.training import Plan, fit, to_unit


class NAD(Defense):
    def __init__(self, teach: Plan, distil: Plan, betas: list, p: float = 2.0, layers: list | None = None) -> None:
        self.teach, self.distil, self.betas, self.p, self.layers = teach, distil, betas, p, layers
        if not betas:
            raise UserError("defense.betas=[] leaves NAD nothing to distil: give a weight for each stage.")
        if layers is not None and len(layers) != len(betas):
            raise UserError(f"defense.layers names {len(layers)} layers, but defense.betas weighs {len(betas)}.")

    def repair(self, model, data):
        student, teacher = copy.deepcopy(model), copy.deepcopy(model)
        layers = stages(student, data)[-len(self.betas) :] if self.layers is None else self.layers
        fit(teacher, data.clean, self.teach, seed=data.seed, augment=data.augment, label="NAD teacher")
        with tapped(teacher, layers) as taught, tapped(student, layers) as learnt:

            def objective(student, x, y):
                logits = student(x)
                with torch.no_grad():
                    teacher(x)
                loss = F.cross_entropy(logits, y)
                for beta, layer in zip(self.betas[-len(layers) :], layers, strict=True):
                    maps = (attention(outputs[layer], self.p) for outputs in (learnt, taught))
                    loss = loss + beta * F.mse_loss(*maps)
                return loss, logits

            fit(student, data.clean, self.distil, seed=data.seed + 1, augment=data.augment,
                objective=objective, label="NAD student")  # fmt: skip
        return Repaired([Candidate(student)])


def attention(maps, p):
    """[B, C, H, W] -> [B, H, W]: where an image makes the channels respond, at norm 1."""
    power = maps.float().abs().pow(p).sum(1)
    return power / (torch.linalg.vector_norm(power, dim=(1, 2), keepdim=True) + 1e-6)


def stages(model, data):
    """Of each resolution above one pixel the outermost layer, the last of them if there are more; the resolutions fall."""
    modules = dict(model.named_modules())

    def depth(name):  # layers of a Sequential lie beside each other, and not in it
        return sum(c == "." and not isinstance(modules[name[:at]], nn.Sequential) for at, c in enumerate(name))

    norms = nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm
    layers = [name for name, module in modules.items() if name and not isinstance(module, norms)]
    with tapped(model, layers) as outputs, torch.no_grad():
        model.eval()(to_unit(data.clean.x[:1]))
    found: dict[int, str] = {}
    for name, out in outputs.items():
        pixels = out[0, 0].numel() if isinstance(out, torch.Tensor) and out.dim() == 4 else 1
        inner = pixels in found and depth(name) > depth(found[pixels])
        if 1 < pixels <= min(found, default=pixels) and not inner:
            found[pixels] = name
    if not found:
        raise UserError("NAD compares feature maps, and no layer of this network makes any larger than one pixel.")
    return list(found.values())


@contextmanager
def tapped(model, layers):
    """A dict that every forward fills with the outputs of these layers, in the order they end."""
    outputs, modules = {}, dict(model.named_modules())
    for layer in layers:
        if layer not in modules:
            raise UserError(f"defense.layers names {layer}, which this network has not; it has {', '.join(modules)}.")
    hooks = [modules[n].register_forward_hook(lambda m, i, out, n=n: outputs.update({n: out})) for n in layers]
    yield outputs
    for hook in hooks:
        hook.remove()
