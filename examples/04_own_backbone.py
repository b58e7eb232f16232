"""A network of your own as the backbone: any that gives a list of feature maps and says their channels and strides.

timm's networks do: `timm.create_model("convnext_tiny", pretrained=True, features_only=True)`.
"""

import torch
from torch import Tensor, nn

import cpn_fast


class FeatureInfo:
    """What a backbone has to say about its maps, as timm's networks say it."""

    def channels(self) -> list[int]:
        """Channels of each map."""
        return [16, 32, 64]

    def reduction(self) -> list[int]:
        """Stride of each map: input pixels per pixel of the map."""
        return [4, 8, 16]


class SmallNet(nn.Module):
    """Three stages of convolution, batch norm and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_info = FeatureInfo()
        widths, strides = [3, *self.feature_info.channels()], [4, 2, 2]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps of images [B, 3, H, W], fine to coarse."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def main() -> None:
    """Build a CPN network on the backbone and train it for one step by hand."""
    # In a training by `cpn train` it would be `--backbone my_module:SmallNet`, with the module's folder on PYTHONPATH.
    net = cpn_fast.create_model("cpn", backbone=SmallNet(), num_classes=2).train()
    images, labels = torch.randn(4, 3, 64, 96), torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, 0]])
    out = net(images)
    print("class activation maps", tuple(out.cam.shape), "scores", tuple(out.scores.shape))

    refined = net.refine(out.cam, out.features, labels)
    print("refined by pixel correlation", tuple(refined.shape))

    loss = nn.functional.multilabel_soft_margin_loss(out.scores, labels)
    loss.backward()
    trained = sum(p.numel() for p in net.backbone.parameters() if p.grad is not None)
    print(f"loss {loss.item():.3f}; {trained} weights of the backbone have a gradient, its batch norms are frozen")


if __name__ == "__main__":
    main()
