"""The labelling module: images to multi-scale RCAM and masks; eager labelling and the ONNX graph share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cpn_fast.config.refine import OF_PIXEL_HEAD, OF_RAW_FEATURES, PER_SCALE, RefineOptions
from cpn_fast.config.scales import CAM_SCALES, FEATURE_SCALE
from cpn_fast.files.background_score import DEFAULT_BETA
from cpn_fast.models.cam import CamNet, CamOutput
from cpn_fast.models.pairs import pair_cam, patterns, shown_pixels
from cpn_fast.models.refinement import refine_raw, spread_raw
from cpn_kernels.cam_norm import MapNorm, normalise_cam
from cpn_kernels.ops.cp_triplet import normalise_images

ScaleResize = Literal["bilinear", "bicubic"]


class Labelled(NamedTuple):
    """What the labeller says of B images.

    Attributes:
        cam: float [B, K, H, W] normalised foreground CAM in [0, 1).
        rcam: the same for RCAM (the CAM again where the network has no refinement).
        scores: float [B, K] class probabilities at the scale nearest to 1.
        mask: uint8 [B, H, W], 0 background, 1..K classes.
    """

    cam: Tensor
    rcam: Tensor
    scores: Tensor
    mask: Tensor


class ScaleMaps(NamedTuple):
    """Un-normalised foreground maps of one scale (flip already summed), float [B, K, H, W].

    `rcam` is None where refinement follows once all scales are summed, and `cam` where only RCAM was asked for.
    """

    cam: Tensor | None
    rcam: Tensor | None


class Maps(NamedTuple):
    """What `Labeller.scale_maps` gives.

    Attributes:
        scores: class probabilities [B, K].
        in_force: float [B, K], the labels by which maps are masked.
        scales: the maps of one scale after the other.
        fused: gives RCAM [B, K, H, W] of all scales, in 0..1, where it is made once from their sum; else None.
    """

    scores: Tensor
    in_force: Tensor
    scales: Iterator[ScaleMaps]
    fused: Callable[[], Tensor] | None


def scaled_size(length: int, scale: float) -> int:
    """`length * scale` in pixels, rounded half up in integers, so that eager and exported graphs agree."""
    return (length * round(scale * 100) + 50) // 100


def fitted_size(length: int, long_side: int, target: int) -> int:
    """`length * target / long_side` in pixels, rounded half up, at least 1: a side of an image brought to a size.

    Args:
        length: a side of the image.
        long_side: its longer side.
        target: what the longer side becomes.
    """
    return torch.sym_max(1, (2 * length * target + long_side) // (2 * long_side))


def view_size(height: int, width: int, scale: float, side: int | None = None) -> tuple[int, int]:
    """Height and width in pixels of an image at a scale of its own size, or of a long side of `side` pixels."""
    if side is None:
        return scaled_size(height, scale), scaled_size(width, scale)
    long_side, target = torch.sym_max(height, width), scaled_size(side, scale)
    return fitted_size(height, long_side, target), fitted_size(width, long_side, target)


def scaled_views(views: Tensor, scale: float, flip: bool, side: int | None = None) -> Tensor:
    """Views [B, 3, H, W] at another scale; with flip, the mirrored ones behind them, [2B, 3, H', W'].

    Args:
        views: normalised images.
        scale: factor of the image's size; with `side`, of that long side in pixels.
        flip: add the mirrored views.
        side: long side that scale 1 brings an image to; None = its own.
    """
    size = view_size(views.shape[2], views.shape[3], scale, side)
    unchanged = side is None and scale == 1
    scaled = views if unchanged else F.interpolate(views, size=size, mode="bilinear", align_corners=False)
    return torch.cat([scaled, scaled.flip(3)]) if flip else scaled


def bicubic_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images at another size as Pillow's bicubic filter makes them: antialiased, rounded to 8 bits.

    Args:
        images: uint8 [B, H, W, 3].
        size: target (height, width) in pixels.

    Returns:
        uint8 [B, height, width, 3], within one grey level of Pillow, which rounds between its two passes too.
    """
    colours = images.permute(0, 3, 1, 2).float()
    resized = F.interpolate(colours, size=size, mode="bicubic", align_corners=False, antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def unflipped(maps: Tensor, flip: bool) -> tuple[Tensor, ...]:
    """Maps of what `scaled_views` gave: with flip its two halves [B, C, h, w], the second mirrored back."""
    if not flip:
        return (maps,)
    # Not chunk(): under export it would fix the batch size to the example's.
    straight, mirrored = maps.unflatten(0, (2, -1)).unbind()
    return straight, mirrored.flip(3)


def standing_labels(scores: Tensor, threshold: float) -> Tensor:
    """Labels [B, K] from class probabilities: those above `threshold`, at least the best one."""
    best = F.one_hot(scores.argmax(dim=1), scores.shape[1]).bool()
    return (best | (scores > threshold)).to(scores.dtype)


def present_channels(labels: Tensor) -> Tensor:
    """Indices, int64 [P], of the classes that any row of the labels [B, K] holds; the first class where none does."""
    channels = (labels > 0).any(dim=0).nonzero().flatten()
    return channels if len(channels) else channels.new_zeros(1)


def of_channels(maps: Tensor, channels: Tensor | None) -> Tensor:
    """The chosen channels (axis 1) of maps or labels; None = all of them."""
    return maps if channels is None else maps[:, channels]


def normalised(maps: Tensor, labels: Tensor, map_norm: MapNorm) -> Tensor:
    """Summed maps to [0, 1) by the rule of the CAM, absent classes zero."""
    return normalise_cam(maps, labels, map_norm=map_norm)


def added(total: Tensor | None, maps: Tensor | None) -> Tensor | None:
    """A running sum of maps; None where there was nothing yet, or nothing comes."""
    return maps if total is None else total if maps is None else total + maps


def mask_of(maps: Tensor, beta: float) -> Tensor:
    """uint8 [B, H, W]: argmax over background (constant `beta`) and the K foreground maps [B, K, H, W]."""
    background = torch.full_like(maps[:, :1], beta)
    return torch.cat([background, maps], dim=1).argmax(dim=1).to(torch.uint8)


class Labeller(nn.Module):
    """Multi-scale, flipped inference of a CamNet (paper section 4.1).

    Class probabilities come from the scale nearest to 1, the one at which the classifier was trained.

    Args:
        net: a trained network; it is put into eval mode.
        scales: scale factors of the image, or of `side`.
        flip: also run the mirrored image.
        beta: background score of the mask, in [0, 1].
        threshold: class probability above which a class stands in where an image has no labels.
        map_norm: normalisation of the run.
        resize: how images are brought to a scale: "bilinear" without antialiasing, or "bicubic" as Pillow does it.
        refine: how RCAM is made; a network without refinement heads has no "learnt" one, its RCAM is the CAM.
        side: long side in pixels that scale 1 brings an image to; None = the image's own.
        pairs: so many complementary pairs of the image at every scale, the mean of whose maps is added to the CAM.
    """

    shown: Tensor

    def __init__(
        self,
        net: CamNet,
        scales: Sequence[float] = CAM_SCALES,
        flip: bool = True,
        beta: float = DEFAULT_BETA,
        threshold: float = 0.5,
        map_norm: MapNorm = "minmax",
        resize: ScaleResize = "bilinear",
        refine: RefineOptions = PER_SCALE,
        side: int | None = None,
        pairs: int = 0,
    ) -> None:
        super().__init__()
        self.net = net.eval()
        self.register_buffer("shown", patterns(pairs), persistent=False)
        self.scales, self.flip, self.beta = tuple(scales), flip, beta
        self.scoring_pass = self._nearest(1.0)
        self.feature_pass = self._nearest(1.0 if side is None else FEATURE_SCALE)
        self.threshold, self.map_norm, self.resize = threshold, map_norm, resize
        self.refine, self.side = refine, side

    @property
    def refined(self) -> bool:
        """Whether RCAM differs from CAM."""
        how = self.refine.refine
        return how in ("raw", *OF_PIXEL_HEAD) or (how == "learnt" and self.net.refinement != "none")

    @property
    def refined_once(self) -> bool:
        """Whether RCAM is made of the sum of all scales' CAMs."""
        return self.refine.refine in OF_PIXEL_HEAD or (self.refined and self.refine.at == "fused")

    def _nearest(self, scale: float) -> int:
        return min(range(len(self.scales)), key=lambda index: abs(self.scales[index] - scale))

    def _at_scale(self, images: Tensor, views: Tensor, scale: float) -> Tensor:
        """Views at a scale, mirrored ones behind them, of uint8 images [B, H, W, 3] or of those normalised."""
        if self.resize == "bilinear" or (self.side is None and scale == 1):
            return scaled_views(views, scale, self.flip, self.side)
        size = view_size(images.shape[1], images.shape[2], scale, self.side)
        return scaled_views(normalise_images(bicubic_images(images, size), self.net.mean), 1, self.flip)

    def _at_image_size(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        full = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        straight, *mirrored = unflipped(full, self.flip)
        return straight + mirrored[0] if mirrored else straight

    def _passes(self, images: Tensor, views: Tensor) -> list[CamOutput]:
        """The network at every scale; of refinement once, only the features that it takes are kept."""
        raw, passes = self.refine.refine in OF_RAW_FEATURES, []
        for index, scale in enumerate(self.scales):
            scaled = self._at_scale(images, views, scale)
            output = self.net(scaled, raw)
            if len(self.shown):
                output = output._replace(cam=F.relu(output.cam) + self._pairs_cam(scaled))
            if self.refine.refine == "pixels" or (self.refined_once and index != self.feature_pass):
                output = output._replace(features=output.features[:, :0])
            passes.append(output)
        return passes

    def _pairs_cam(self, views: Tensor) -> Tensor:
        """The mean over the pairs of their CAM >= 0 of the views of one scale."""
        size = (views.shape[2], views.shape[3])
        maps = [
            pair_cam(lambda hidden: self.net(hidden).cam, views, shown_pixels(pattern, *size), self.flip)
            for pattern in self.shown.unbind()
        ]
        return torch.stack(maps).mean(dim=0)

    def refine_map(self, cam: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Un-normalised RCAM [M, K, h, w] of a CAM, with the features [M, E, h, w] that `refine` names.

        For "pixels-raw" it is the probabilities [M, K + 1, h, w] of the pixel head that are spread, background first.
        """
        if self.refine.refine == "pixels-raw":
            return spread_raw(cam, features, self.refine.power)
        if self.refine.refine == "raw":
            return refine_raw(cam, features, labels, self.map_norm, self.refine.power)
        return self.net.refine(cam, features, labels, self.map_norm, power=self.refine.power)

    def scale_maps(self, images: Tensor, labels: Tensor, present_only: bool = False, with_cam: bool = True) -> Maps:
        """The parts of `forward`, for scoring each scale beside their sum in one pass.

        Args:
            images: uint8 [B, H, W, 3] RGB.
            labels: float [B, K]; a row of -1 means that the network's own scores stand in.
            present_only: give only the maps of `present_channels`: those of absent classes end as zeros anyway, and
                with many classes most of the time goes into enlarging them. Not for export (a size by value).
            with_cam: False leaves out enlarging the CAMs, for those who need RCAM alone.

        Returns:
            see `Maps`.
        """
        views = normalise_images(images, self.net.mean)
        size = (views.shape[2], views.shape[3])
        passes = self._passes(images, views)
        logits = passes[self.scoring_pass].scores
        if self.flip:
            logits = logits.unflatten(0, (2, -1)).mean(dim=0)
        scores = torch.sigmoid(logits)
        in_force = torch.where(labels.amin(dim=1, keepdim=True) < 0, standing_labels(scores, self.threshold), labels)
        channels = present_channels(in_force) if present_only else None
        per_scale = self._each_scale(passes, in_force, channels, size, with_cam or not self.refined)
        fused = (lambda: self._fused(passes, in_force, channels, size)) if self.refined_once else None
        return Maps(scores, in_force, per_scale, fused)

    def _refine_channels(self, cam: Tensor, features: Tensor, labels: Tensor, channels: Tensor | None) -> Tensor:
        """`refine_map`, of the chosen channels only where the others have no say in it."""
        if channels is None:
            return self.refine_map(cam, features, labels)
        if self.refine.refine == "learnt" and self.net.refines_all_classes:
            return of_channels(self.refine_map(cam, features, labels), channels)
        return self.refine_map(of_channels(cam, channels), features, of_channels(labels, channels))

    def _each_scale(
        self,
        passes: Sequence[CamOutput],
        labels: Tensor,
        channels: Tensor | None,
        size: tuple[int, int],
        with_cam: bool,
    ) -> Iterator[ScaleMaps]:
        repeated = labels.repeat(2, 1) if self.flip else labels
        for output in passes:
            cam = self._at_image_size(F.relu(of_channels(output.cam, channels)), size) if with_cam else None
            if self.refined_once:
                yield ScaleMaps(cam, None)
            elif self.refined:
                refined = self._refine_channels(output.cam, output.features, repeated, channels)
                yield ScaleMaps(cam, self._at_image_size(refined, size))
            else:
                yield ScaleMaps(cam, cam)

    def _fused(
        self, passes: Sequence[CamOutput], labels: Tensor, channels: Tensor | None, size: tuple[int, int]
    ) -> Tensor:
        """Normalised RCAM of the scales' summed CAMs, refined once on the grid of one scale, at image size."""
        if self.refine.refine in OF_PIXEL_HEAD:
            return self._pixel_maps(passes, labels, channels, size)
        chosen = passes[self.feature_pass]
        grid = (chosen.cam.shape[2], chosen.cam.shape[3])
        total = self._at_image_size(F.relu(chosen.cam), grid)
        for index, output in enumerate(passes):
            if index != self.feature_pass:
                total = total + self._at_image_size(F.relu(output.cam), grid)
        refined = self._refine_channels(total, self._features(chosen), labels, channels)
        full = F.interpolate(refined, size=size, mode="bilinear", align_corners=False)
        return normalised(full, of_channels(labels, channels), self.map_norm)

    def _features(self, chosen: CamOutput) -> Tensor:
        """The features of one pass, of the image and its mirrored form in the mean."""
        halves = unflipped(chosen.features, self.flip)
        return (halves[0] + halves[1]) / 2 if self.flip else halves[0]

    def _pixel_maps(
        self, passes: Sequence[CamOutput], labels: Tensor, channels: Tensor | None, size: tuple[int, int]
    ) -> Tensor:
        """The pixel head's maps, by its mean logits of all scales, among background and the image's classes.

        With shares p_0 of background and p_c of the classes the map of a class is p_c / (p_0 + max p_c): that of the
        best class is its share against background alone, so that a background score of 0.5 gives the argmax.
        """
        logits = self._pixel_logits(passes)
        logits = torch.cat([logits[:, :1], of_channels(logits[:, 1:], channels)], dim=1)
        competing = F.pad(of_channels(labels, channels) > 0, (1, 0), value=True)[:, :, None, None]
        if self.refine.refine == "pixels":
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        shares = logits.masked_fill(~competing, float("-inf")).softmax(dim=1)
        if self.refine.refine == "pixels-raw":
            spread = self.refine_map(shares, self._features(passes[self.feature_pass]), labels)
            shares = F.interpolate(spread, size=size, mode="bilinear", align_corners=False)
        background, foreground = shares[:, :1], shares[:, 1:]
        return foreground / (background + foreground.amax(dim=1, keepdim=True))

    def _pixel_logits(self, passes: Sequence[CamOutput]) -> Tensor:
        """The pixel head's logits [B, K + 1, h, w], a mean over scales and mirrored forms, on the grid of one scale."""
        maps = [output.pixels for output in passes if output.pixels is not None]
        grid = (maps[self.feature_pass].shape[2], maps[self.feature_pass].shape[3])
        total = self._at_image_size(maps[0], grid)
        for other in maps[1:]:
            total = total + self._at_image_size(other, grid)
        return total / (len(maps) * (2 if self.flip else 1))

    def forward(self, images: Tensor, labels: Tensor) -> Labelled:
        """Label uint8 images [B, H, W, 3] with labels float [B, K] (a row of -1: own scores stand in)."""
        maps = self.scale_maps(images, labels)
        cam = rcam = None
        for part in maps.scales:
            cam, rcam = added(cam, part.cam), added(rcam, part.rcam)
        assert cam is not None
        cam = normalised(cam, maps.in_force, self.map_norm)
        if maps.fused is not None:
            rcam = maps.fused()
        else:
            assert rcam is not None
            rcam = normalised(rcam, maps.in_force, self.map_norm)
        return Labelled(cam, rcam, maps.scores, mask_of(rcam, self.beta))
